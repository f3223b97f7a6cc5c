"""What a judge did over many questions, counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from posttrain_jax.errors import UserError
from posttrain_jax.rewards.judges.self_critique import Outcome


@dataclasses.dataclass(frozen=True)
class Tally:
    """Counts that add up.

    Attributes:
      asked: outcomes that a judge was asked for.
      failed: those for which the judge could not be asked.
      turned, turnable: pairs whose verdict turned with the order, of those with two verdicts.
      malformed: outcomes with an answer that is no verdict.
      agreed, comparable: pairs of a verified right and a wrong response where the judge chose the right one (ties ½).
      failure: the reason of the last failure.
    """

    asked: int = 0
    failed: int = 0
    turned: int = 0
    turnable: int = 0
    malformed: int = 0
    agreed: float = 0.0
    comparable: int = 0
    failure: str = ""

    def __add__(self, other: Tally) -> Tally:
        mine, its = dataclasses.astuple(self), dataclasses.astuple(other)
        return Tally(*(a + b for a, b in zip(mine[:-1], its[:-1], strict=True)), failure=other.failure or self.failure)

    def check(self) -> None:
        """Whether anything was answered.

        Raises:
          UserError: a judge was asked, and could not be asked about any.
        """
        if self.asked and self.failed == self.asked:
            raise UserError(f"the judge could not be asked about any response: {self.failure}")

    def metrics(self) -> dict[str, float]:
        """Shares; those of nothing are left out."""
        shares = {
            "judge_agreement": (self.agreed, self.comparable),
            "judge_consistent": (self.turned, self.turnable),
            "judge_malformed": (self.malformed, self.asked - self.failed),
            "judge_failed": (self.failed, self.asked),
        }
        return {name: part / whole for name, (part, whole) in shares.items() if whole}


def count(outcomes: Iterable[Outcome], agreed: tuple[float, int]) -> Tally:
    """The tally of one group's outcomes, with what `refresh.agreement` says of them."""
    found = [one for one in outcomes if one.asked]
    turnable = [one for one in found if one.consistent is not None]
    return Tally(
        asked=len(found),
        failed=sum(one.score is None for one in found),
        turned=sum(bool(one.consistent) for one in turnable),
        turnable=len(turnable),
        malformed=sum(bool(one.malformed) for one in found),
        agreed=agreed[0],
        comparable=agreed[1],
        failure=next((one.failed for one in found if one.failed), ""),
    )
