"""A recorded step reads as what was recorded."""

import numpy as np
import pytest

from posttrain_jax.data.tasks import Problem
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.verdict import right, wrong
from posttrain_jax.rollout.trajectory import Segment
from posttrain_jax.stages import replaying
from posttrain_jax.stages.experience import Experience


def response(length, verdict, routing=None):
    rng = np.random.default_rng(length)
    segments = [
        Segment(
            rng.integers(0, 9, n).astype(np.int32),
            rng.random(n) < 0.5,
            rng.normal(size=n).astype(np.float32),
            np.zeros(n, np.int32),
            None if routing is None else np.full((n, 2, 2), routing, np.int32),
        )
        for n in (length, length + 1)
    ]
    problem = Problem("gcd", 1, length, "?", "2", "", {"question": "?"})
    return replaying.Recorded(problem, verdict, 0.1 * length, segments, length, 2 * length + 1, "stop", {"prompt": "?"})


def test_every_bit_comes_back_in_the_same_groups(tmp_path):
    everything = [response(3, right("2")), response(4, wrong("no")), response(5, wrong("no"), routing=1)]
    replaying.write(tmp_path, 7, Experience([[everything[2], everything[0]]], everything, 11, 2, 1), None)
    found = replaying.read(tmp_path, 7)
    assert (found.draws, found.rounds, found.ungraded) == (11, 2, 1)
    assert [[found.everything.index(one) for one in group] for group in found.groups] == [[2, 0]]
    for one, two in zip(found.everything, everything, strict=True):
        assert (one.problem, one.verdict, one.reward, one.finish) == (two.problem, two.verdict, two.reward, two.finish)
        for a, b in zip(one.segments, two.segments, strict=True):
            for x, y in zip(a, b, strict=True):
                assert (x is None and y is None) or (x.dtype == y.dtype and x.tobytes() == y.tobytes())


def test_a_step_that_was_not_recorded_is_said_to_be_missing(tmp_path):
    with pytest.raises(UserError, match="rl.rollouts: .*3.npz is missing; none is recorded"):
        replaying.read(tmp_path, 3)
