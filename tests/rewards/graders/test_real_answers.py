"""Answers that people wrote: each agrees with itself and with no other problem's."""

import gzip
import json
import os
from pathlib import Path

import pytest

from posttrain_jax.rewards.graders.numeric import numeric

pytestmark = pytest.mark.skipif("POSTTRAIN_DATA" not in os.environ, reason="POSTTRAIN_DATA names no folder with math/")


def rows(name, step):
    with gzip.open(Path(os.environ["POSTTRAIN_DATA"]) / name, "rt") as lines:
        return [json.loads(line) for line in lines][::step]


def test_worked_solutions_of_gsm8k():
    solutions = [row["answer"] for row in rows("gsm8k/train.jsonl.gz", 10)]
    answers = [solution.split("####")[1].strip() for solution in solutions]
    assert all(numeric(s, a).correct for s, a in zip(solutions, answers, strict=True))
    others = [(s, a) for s, b, a in zip(solutions, answers, answers[1:], strict=False) if a != b]
    assert len(others) > 600 and not any(numeric(s, a).correct for s, a in others)


def test_answers_of_math_in_another_form(maths):
    answers = [row["answer"] for row in rows("math/train_answers.jsonl.gz", 60) if row["answer"]]
    frac, dfrac = r"\frac", r"\dfrac"
    agreed = [maths.grade(rf"So \boxed{{ {a.replace(frac, dfrac)}}}.", a).correct for a in answers]
    assert len(agreed) > 100 and sum(agreed) >= 0.99 * len(agreed)
    others = [(a, b) for a, b in zip(answers, answers[1:], strict=False) if a != b]
    assert not any(maths.grade(rf"\boxed{{{a}}}", b).correct for a, b in others)
