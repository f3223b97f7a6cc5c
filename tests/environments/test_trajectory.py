"""A trajectory takes only what continues it."""

import numpy as np
import pytest

from posttrain_jax.rollout.request import Completion, Request
from posttrain_jax.rollout.trajectory import Trajectory


def completion(*tokens, logprobs=None):
    return Completion(np.asarray(tokens, np.int32), np.asarray(logprobs or [-1.0] * len(tokens), np.float32), "stop")


def test_sampled_tokens_and_what_is_known_of_them():
    trajectory = Trajectory([1, 2])
    trajectory.sampled(Request((1, 2), 0, 9), completion(3, 4, logprobs=[-0.5, -0.25]))
    trajectory.append([5])
    trajectory.sampled(Request(trajectory.prompt, 0, 9), completion(6))
    assert trajectory.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert trajectory.mask.tolist() == [False, False, True, True, False, True]
    assert trajectory.logprobs.tolist() == [0, 0, -0.5, -0.25, 0, -1.0]
    assert trajectory.versions.tolist() == [-1] * 6
    assert [(turn.start, turn.end) for turn in trajectory.turns] == [(2, 4), (5, 6)]


@pytest.mark.parametrize("prompt", [(1, 2), (1, 2, 3, 9), (1, 2, 3, 4, 5)])
def test_an_answer_to_another_context_is_refused(prompt):
    trajectory = Trajectory([1, 2])
    trajectory.sampled(Request((1, 2), 0, 9), completion(3))
    trajectory.append([4])
    with pytest.raises(ValueError, match=f"differ from token {min(len(prompt), 4 - (9 in prompt))} on"):
        trajectory.sampled(Request(prompt, 0, 9), completion(7))
    assert len(trajectory) == 4


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        Trajectory([1]).sampled(Request((1,), 0, 9), completion(3, 4, logprobs=[-1.0]))
