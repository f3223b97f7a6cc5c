"""Judged responses in training rows, against rows built one token at a time."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain_jax.rollout.request import Completion
from posttrain_jax.run.recipe import RL
from posttrain_jax.stages.experience import Trajectory
from posttrain_jax.stages.packing import capacity, pack

LENGTH = 16


def trajectory(prompt, response):
    """A response whose tokens and log-probabilities are all different, so that none can stand in another's place."""
    tokens = np.arange(100, 100 + response, dtype=np.int32)
    return Trajectory(
        problem=None,
        prompt=list(range(1, prompt + 1)),
        completion=Completion(tokens, -0.01 * np.arange(1, response + 1, dtype=np.float32), "stop"),
        message={},
        verdict=None,
        reward=0.0,
    )


SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 8)), max_size=20)


@given(SIZES, st.integers(1, 3))
def test_rows_are_those_built_a_token_at_a_time(sizes, rows):
    responses = [(trajectory(*size), 0.5 + index) for index, size in enumerate(sizes)]
    full = -(-len(sizes) // rows) + 1
    filled, batch = pack(responses, rows=rows, length=LENGTH, capacity=full)
    assert {array.shape for array in batch.values()} == {(full, rows, LENGTH)}
    flat = {name: array.reshape(full * rows, LENGTH) for name, array in batch.items()}

    expected = [[] for _ in range(full * rows)]  # for each row its columns
    segments = [0] * len(expected)
    for one, advantage in responses:
        whole = [*one.prompt, *one.completion.tokens.tolist()]
        row = next(row for row, columns in enumerate(expected) if len(columns) + len(whole) - 1 <= LENGTH)
        segments[row] += 1
        for position in range(len(whole) - 1):
            sampled = position + 1 - len(one.prompt)  # of the target, within the response
            old = one.completion.logprobs[sampled] if sampled >= 0 else 0.0
            weight = (1.0, old, advantage) if sampled >= 0 else (0.0, 0.0, 0.0)
            expected[row].append((whole[position], whole[position + 1], position, segments[row], *weight))
    names = ("tokens", "targets", "positions", "segment_ids", "mask", "old_logprobs", "advantages")
    for row, columns in enumerate(expected):
        padded = columns + [(0,) * len(names)] * (LENGTH - len(columns))
        for name, numbers in zip(names, zip(*padded, strict=True), strict=True):
            np.testing.assert_array_equal(flat[name][row], np.array(numbers, flat[name].dtype), name)
    assert filled == -(-sum(bool(columns) for columns in expected) // rows)
    assert not any(array[filled:].any() for array in batch.values())
    assert batch["mask"].sum() == sum(response for _, response in sizes)


@given(st.integers(1, 12), st.integers(2, 6), st.integers(1, 4), st.integers(1, 4), st.integers(2, 40), st.randoms())
def test_capacity_holds_a_minibatch_however_long_its_responses_are(prompts, group, minibatches, rows, longest, random):
    settings = dataclasses.replace(
        RL(),
        prompts=prompts,
        group_size=group,
        minibatches=min(minibatches, prompts),
        microbatch_rows=rows,
        length=random.randint(longest, 3 * longest),
    )
    most = -(-settings.prompts // settings.minibatches) * group
    sizes = [random.choice((longest, random.randint(2, longest))) for _ in range(most)]
    for worst in (sizes, [longest] * most):
        responses = [(trajectory(1, size - 1), 1.0) for size in worst]
        room = capacity(settings, longest)
        filled, batch = pack(responses, rows=rows, length=settings.length, capacity=room)
        assert filled <= room
        assert batch["mask"].sum() == sum(worst) - most


def test_nothing_to_pack_is_no_microbatch():
    filled, batch = pack([], rows=2, length=LENGTH, capacity=1)
    assert filled == 0 and not any(array.any() for array in batch.values())


def test_a_response_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="17 tokens does not fit a row of 16"):
        pack([(trajectory(9, 9), 1.0)], rows=1, length=LENGTH, capacity=1)


def test_experts_lie_beside_the_tokens_they_took():
    """-1 in padding, and the last token of a response, which nothing is predicted from, is left out."""
    rng = np.random.default_rng(0)
    told = []
    for prompt, response in ((3, 4), (5, 6), (2, 2)):
        routing = rng.integers(0, 8, (prompt + response, 3, 2)).astype(np.int32)
        one = trajectory(prompt, response)
        told.append((dataclasses.replace(one, completion=dataclasses.replace(one.completion, routing=routing)), 1.0))
    _, batch = pack(told, rows=1, length=LENGTH, capacity=3)
    assert batch["routing"].shape == (3, 1, LENGTH, 3, 2)
    flat = batch["routing"].reshape(3, LENGTH, 3, 2)
    first, second, third = (t.completion.routing[:-1] for t, _ in told)
    np.testing.assert_array_equal(flat[0], np.concatenate([first, second]))
    np.testing.assert_array_equal(flat[1, :3], third)
    assert (flat[1, 3:] == -1).all() and (flat[2] == -1).all()


def test_what_the_newest_policy_drew_is_marked():
    one = trajectory(2, 4)
    completion = dataclasses.replace(one.completion, versions=np.array([6, 6, 7, 7], np.int32))
    _, batch = pack([(dataclasses.replace(one, completion=completion), 1.0)], rows=1, length=8, capacity=1, version=7)
    assert batch["mask"].ravel().tolist() == [0, 1, 1, 1, 1, 0, 0, 0]
    assert batch["fresh"].ravel().tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
