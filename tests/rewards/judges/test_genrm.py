"""Scores beside a reference."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opinions import Scripted, by_number

from posttrain_jax.rewards.judges.genrm import compared, graded, normalised
from posttrain_jax.rewards.judges.rubrics import CORE
from posttrain_jax.rewards.judges.self_critique import Outcome

SCORES = st.lists(st.none() | st.floats(0, 1), max_size=12)


@pytest.mark.parametrize("grade, score", [(1, 0.0), (2, 0.25), (3, 0.5), (4, 0.75), (5, 1.0)])
def test_five_grades_are_five_scores(grade, score):
    judge = Scripted(grades={"x": grade})
    assert asyncio.run(graded(judge, "?", "x", "truth", 4)) == Outcome(score)
    assert judge.asked == [("x", "truth", 4)]


def test_no_grade_is_the_middle_and_a_failure_is_none():
    judge = Scripted(grades={"x": None, "y": "failed"})
    assert asyncio.run(graded(judge, "?", "x", "truth", 0)) == Outcome(0.5, malformed=1)
    assert asyncio.run(graded(judge, "?", "y", "truth", 0)) == Outcome(None, failed="away")


@pytest.mark.parametrize("answer, score", [("1", 0.0), ("5", 0.5), ("9", 1.0)])
def test_an_answer_is_compared_with_the_reference_in_both_orders(answer, score):
    judge = Scripted(by_number)
    assert asyncio.run(compared(judge, "?", answer, "5.0", CORE, 0)).score == score
    assert [asked[:2] for asked in judge.asked] == [(answer, "5.0"), ("5.0", answer)]
    assert asyncio.run(compared(Scripted(lambda a, b: 1), "?", answer, "5.0", CORE, 0)) == Outcome(0.5, False)


@given(SCORES, st.sampled_from([0.0, 0.5, 2.0]))
def test_scores_are_normalised_and_bounded(scores, clip):
    found = normalised(scores, clip)
    assert [one is None for one in found] == [one is None for one in scores]
    given_ = np.array([one for one in scores if one is not None])
    mine = np.array([one for one in found if one is not None])
    if len(given_) and given_.std() > 1e-6:
        expected = (given_ - given_.mean()) / given_.std()
        np.testing.assert_allclose(mine, np.clip(expected, -clip, clip) if clip else expected, atol=1e-6)
    elif len(given_) and given_.std() < 1e-12:
        assert not mine.any()
