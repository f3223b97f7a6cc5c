"""What a verdict may say."""

import pytest

from posttrain_jax.rewards.verdict import Verdict, broken, right, wrong


def test_the_three_kinds():
    assert (right("a").reward, right("a").correct, right("a").infrastructure) == (1.0, True, False)
    assert (wrong("b").reward, wrong("b").correct, wrong("b").infrastructure) == (0.0, False, False)
    assert (broken("c").reward, broken("c").correct, broken("c").infrastructure) == (0.0, False, True)


@pytest.mark.parametrize(
    "said", [(1.5, False), (-0.1, False), (float("nan"), False), (0.5, True), (0.5, False, "", True)]
)
def test_a_verdict_does_not_contradict_itself(said):
    with pytest.raises(ValueError):
        Verdict(*said)
