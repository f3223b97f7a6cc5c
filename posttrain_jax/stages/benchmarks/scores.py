"""What judged answers say of a model, with the uncertainty that so few questions leave."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from posttrain_jax.rewards.graders.calls import valid
from posttrain_jax.stages.benchmarks.answering import Answer
from posttrain_jax.stages.benchmarks.question import Question
from posttrain_jax.stages.evaluation import pass_at

Z = 1.959964  # of 95 %


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of questions, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Score:
    """One benchmark, or one part of it.

    Attributes:
      questions: how many, those that were too long for a prompt included: they count as unsolved.
      pass_at: "pass@k" for k = 1, 2, 4, … up to the samples drawn.
      average: "avg@n", the share of right answers of all n samples; the same as pass@1.
      reward: mean, with marks for what is right in part.
      valid_calls: of the answers that call tools, the share whose every call fits the tools; None if none calls.
      format_errors: share of answers whose form is not what was asked for, or cannot be read.
      cut_off: share of answers that did not end by themselves.
      ungraded: answers that a failure of the grader left without a verdict; they count as wrong.
      tokens: mean length of an answer, thinking included.
      too_long: questions that were not asked.
    """

    benchmark: str
    subset: str
    thinking: str
    questions: int
    pass_at: dict[str, Share]
    average: dict[str, Share]
    reward: float
    valid_calls: float | None
    format_errors: float
    cut_off: float
    ungraded: int
    tokens: float
    too_long: int


def wilson(share: float, count: int) -> Share:
    """A share of ``count`` questions with its 95 % score interval (Wilson 1927).

    Where each question counts with a share of its own, as in pass@k of several samples, the interval is too wide rather
    than too narrow: such shares vary less than zeros and ones.
    """
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return Share(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def scores(
    questions: Sequence[Question], answers: Sequence[Sequence[Answer]], samples: int, thinking: str
) -> list[Score]:
    """Of each benchmark, and behind it of each of its subsets where there are several."""
    found = []
    for benchmark in dict.fromkeys(question.benchmark for question in questions):
        own = [(q, a) for q, a in zip(questions, answers, strict=True) if q.benchmark == benchmark]
        subsets = list(dict.fromkeys(question.subset for question, _ in own))
        found.append(_score(own, benchmark, "" if len(subsets) > 1 else subsets[0], samples, thinking))
        if len(subsets) > 1:
            parts = [[pair for pair in own if pair[0].subset == subset] for subset in subsets]
            found += [_score(part, benchmark, part[0][0].subset, samples, thinking) for part in parts]
    return found


def side_by_side(found: Sequence[Score]) -> list[Score]:
    """The scores with those of one subset next to each other, one for each way of thinking."""
    places = list(dict.fromkeys((score.benchmark, score.subset) for score in found))
    return sorted(found, key=lambda score: places.index((score.benchmark, score.subset)))


def _score(
    pairs: Sequence[tuple[Question, Sequence[Answer]]], benchmark: str, subset: str, samples: int, thinking: str
) -> Score:
    count = len(pairs)
    right = [sum(answer.verdict.correct for answer in answers) for _, answers in pairs]
    every = [(question, answer) for question, answers in pairs for answer in answers]
    calling = [valid(a.message, q.tools) for q, a in every if q.tools and a.message.get("tool_calls")]
    share = lambda found: sum(found) / len(every) if every else 0.0  # noqa: E731
    return Score(
        benchmark=benchmark,
        subset=subset,
        thinking=thinking,
        questions=count,
        pass_at={
            f"pass@{k}": wilson(sum(pass_at(k, r, samples) for r in right) / count, count)
            for k in (2**i for i in range(samples.bit_length()))
        },
        average={f"avg@{samples}": wilson(sum(right) / samples / count, count)},
        reward=sum(answer.verdict.reward for _, answer in every) / samples / count,
        valid_calls=sum(calling) / len(calling) if calling else None,
        format_errors=share([bool(a.message.get("errors")) or not a.verdict.well_formed for _, a in every]),
        cut_off=share([a.finish != "stop" for _, a in every]),
        ungraded=sum(a.verdict.infrastructure for _, a in every),
        tokens=share([a.tokens for _, a in every]),
        too_long=sum(not answers for _, answers in pairs),
    )


def table(found: Sequence[Score]) -> str:
    """The scores as aligned text."""
    ks = list(dict.fromkeys(k for score in found for k in score.pass_at))
    head = ["", "think", "n", "pass@1", "95 %", *ks[1:], "reward", "valid calls", "bad form", "cut off", "tokens"]
    rows = [head]
    for score in found:
        name = f"{score.benchmark} {score.subset}".strip() if score.subset != "all" else score.benchmark
        first = score.pass_at["pass@1"]
        calls = "" if score.valid_calls is None else f"{score.valid_calls:.1%}"
        rows.append(
            [
                *(name, score.thinking, str(score.questions), f"{first.value:.1%}"),
                f"{first.low:.1%} – {first.high:.1%}",
                *(f"{score.pass_at[k].value:.1%}" for k in ks[1:]),
                *(f"{score.reward:.3f}", calls, f"{score.format_errors:.1%}"),
                *(f"{score.cut_off:.1%}", f"{score.tokens:.1f}"),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    sides = "<<" + ">" * (len(head) - 2)
    aligned = [[f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)] for row in rows]
    notes = [
        f"{score.benchmark} ({score.thinking}): {count} {what}"
        for score in found
        if score.subset in ("", "all")
        for count, what in ((score.too_long, "questions too long to be asked"), (score.ungraded, "answers ungraded"))
        if count
    ]
    return "\n".join(["  ".join(row).rstrip() for row in aligned] + notes)
