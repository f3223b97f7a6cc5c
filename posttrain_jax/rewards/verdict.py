"""What every grader says of one answer."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement of one answer.

    Attributes:
      reward: from 0 to 1.
      correct: the answer earned full marks.
      reason: why it did not, in a few words; empty if it did.
      infrastructure: the grader itself failed. Nothing is known of the answer: it is never trained on.
      answer: the text that was judged.
      well_formed: the answer had the form that was asked for.

    Raises:
      ValueError: a reward outside [0, 1], less than 1 for a correct answer, or any where nothing is known.
    """

    reward: float
    correct: bool
    reason: str = ""
    infrastructure: bool = False
    answer: str = ""
    well_formed: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.reward <= 1.0:
            raise ValueError(f"a reward of {self.reward} is outside [0, 1]")
        if self.correct and self.reward < 1.0:
            raise ValueError(f"correct={self.correct} with a reward of {self.reward}")
        if self.infrastructure and self.reward:
            raise ValueError(f"a reward of {self.reward} after a failure of the grader")


def right(answer: str) -> Verdict:
    """Full marks."""
    return Verdict(1.0, True, answer=answer)


def wrong(reason: str, answer: str = "", *, reward: float = 0.0, well_formed: bool = True) -> Verdict:
    """No full marks; ``reward`` is for what was right in part."""
    return Verdict(reward, False, reason, answer=answer, well_formed=well_formed)


def broken(reason: str, answer: str = "") -> Verdict:
    """The grader failed, not the answer."""
    return Verdict(0.0, False, reason, infrastructure=True, answer=answer)


def judged(correct: bool, reason: str, answer: str) -> Verdict:
    """`right`, or `wrong` for ``reason``."""
    return right(answer) if correct else wrong(reason, answer)
