"""Lightning attention against NumPy transcriptions of its recurrence and of the makers' block form, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import context_lightning_attention, lightning_attention
from pallas_kernels.lightning_attention import decay_slopes, lightning_step

BATCH, LENGTH, HEADS, DIM = 2, 23, 4, 6
RATES = np.array([3.0, 0.9, 0.1, 0.0])


@pytest.fixture(scope="module")
def arrays():
    draw = np.random.default_rng(0)
    return [draw.normal(size=(BATCH, LENGTH, HEADS, DIM)).astype(np.float32) for _ in range(3)]


def recurrence(q, k, v, rates, segments=None, state=None):
    """S = e^-r S + k vᵀ, o = qᵀ S, for every row, head and token in turn."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    last = np.zeros((q.shape[0], q.shape[2], q.shape[3], q.shape[3])) if state is None else np.array(state, np.float64)
    for b in range(q.shape[0]):
        current = None
        for t in range(q.shape[1]):
            segment = 1 if segments is None else segments[b][t]
            if segment == 0:
                continue
            if current is not None and segment != current:
                last[b] = 0
            current = segment
            for h in range(q.shape[2]):
                last[b, h] = np.exp(-rates[h]) * last[b, h] + np.outer(k[b, t, h], v[b, t, h])
                out[b, t, h] = q[b, t, h] @ last[b, h]
    return out, last


def makers_blocks(q, k, v, rate, size):
    """The released block form for one head: q-decay, k-decay, diagonal decay (modeling_minimax_m1)."""
    length, dim = q.shape
    state, out = np.zeros((dim, dim)), np.zeros((length, dim))
    for start in range(0, length, size):
        m = min(size, length - start)
        i = np.arange(1, m + 1)
        qi, ki, vi = (x[start : start + m] for x in (q, k, v))
        diagonal = np.where(i[:, None] >= i, np.exp(-rate * np.maximum(i[:, None] - i, 0)), 0)
        out[start : start + m] = (qi * np.exp(-rate * i)[:, None]) @ state + ((qi @ ki.T) * diagonal) @ vi
        state = np.exp(-rate * m) * state + (ki * np.exp(-rate * (m - i))[:, None]).T @ vi
    return out, state


def near(found, expected, tolerance=2e-6):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1))


WAYS = [("definition", 256), ("xla", 256), ("xla", 8), ("xla", 5), ("xla", 1)]


@pytest.mark.parametrize("backend, block", WAYS)
def test_it_is_the_recurrence(arrays, backend, block):
    start = np.random.default_rng(1).normal(size=(BATCH, HEADS, DIM, DIM)).astype(np.float32)
    for state in (None, start):
        found, last = lightning_attention(*arrays, -RATES, initial_state=state, chunk=block, backend=backend)
        expected, expected_last = recurrence(*arrays, RATES, state=state)
        near(found, expected)
        near(last, expected_last)
        assert last.dtype == jnp.float32


@pytest.mark.parametrize("size", [4, 8, 256])
def test_it_is_the_makers_block_form(arrays, size):
    found, last = lightning_attention(*arrays, -RATES, chunk=7)
    for h in range(HEADS):
        expected, state = makers_blocks(*(np.asarray(x[1, :, h], np.float64) for x in arrays), RATES[h], size)
        near(found[1, :, h], expected)
        near(last[1, h], state)


PACKED = np.array(
    [[0] * 3 + [1] * 7 + [2] * 1 + [5] * 8 + [0] * 4, [1] * 5 + [2] * 2 + [0] * 3 + [2] * 3 + [1] * 10], np.int32
)


@pytest.mark.parametrize("backend, block", WAYS)
def test_packed_rows_with_padding_anywhere(arrays, backend, block):
    """Sequences do not touch, padding neither adds nor decays, and a sequence goes on after padding inside it."""
    start = np.random.default_rng(2).normal(size=(BATCH, HEADS, DIM, DIM)).astype(np.float32)
    found, last = lightning_attention(
        *arrays, -RATES, segment_ids=PACKED, initial_state=start, chunk=block, backend=backend
    )
    expected, expected_last = recurrence(*arrays, RATES, PACKED, start)
    near(found, expected)
    near(last, expected_last)
    assert not np.any(np.asarray(found)[PACKED == 0])


@pytest.mark.parametrize("block", [256, 6])
def test_gradients_are_those_of_the_definition_and_of_finite_differences(arrays, block):
    draw = np.random.default_rng(3)
    start = draw.normal(size=(BATCH, HEADS, DIM, DIM)).astype(np.float32)
    weight, state_weight = draw.normal(size=arrays[0].shape), draw.normal(size=start.shape)
    inputs = [*arrays, -RATES.astype(np.float32), start]

    def loss(backend, q, k, v, log_decay, start):
        options = {"segment_ids": PACKED, "initial_state": start, "chunk": block, "backend": backend}
        out, last = lightning_attention(q, k, v, log_decay, **options)
        return (out * weight).sum() + (last * state_weight).sum()

    found = jax.grad(lambda *x: loss("xla", *x), argnums=range(5))(*inputs)
    expected = jax.grad(lambda *x: loss("definition", *x), argnums=range(5))(*inputs)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        near(a, np.asarray(b), 5e-6)
        direction = draw.normal(size=a.shape)

        def at(h, i=i, direction=direction):
            q, k, v, log_decay, state = [*inputs[:i], inputs[i] + h * direction, *inputs[i + 1 :]]
            out, last = recurrence(q, k, v, -log_decay, PACKED, state)
            return (out * weight).sum() + (last * state_weight).sum()

        slope = (at(1e-5) - at(-1e-5)) / 2e-5
        assert (np.asarray(a) * direction).sum() == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_a_long_fast_forgetting_row_neither_overflows_nor_loses_its_gradient():
    x = jnp.ones((1, 2048, 1, 4))
    run = lambda x: lightning_attention(x, x, x, jnp.array([-40.0]))[0]  # noqa: E731
    np.testing.assert_allclose(run(x), 4.0, rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: run(x).sum())(x)).all()


def test_two_halves_make_the_whole_and_so_do_single_steps(arrays):
    whole, last = lightning_attention(*arrays, -RATES)
    first, state = lightning_attention(*(x[:, :9] for x in arrays), -RATES)
    second, end = lightning_attention(*(x[:, 9:20] for x in arrays), -RATES, initial_state=state)
    steps = []
    for t in range(20, LENGTH):
        out, end = lightning_step(*(x[:, t] for x in arrays), -RATES, end)
        steps.append(out[:, None])
    near(jnp.concatenate([first, second, *steps], axis=1), np.asarray(whole))
    near(end, np.asarray(last))


def test_bfloat16_stays_near(arrays):
    found, last = lightning_attention(*(jnp.asarray(x, jnp.bfloat16) for x in arrays), -RATES)
    assert found.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    near(np.asarray(found, np.float32), recurrence(*arrays, RATES)[0], 0.03)


def test_slopes():
    """For 64 heads as published; for others the rule of ALiBi."""
    slopes = decay_slopes(64)
    np.testing.assert_allclose(slopes[:4], [0.917004, 0.840896, 0.771105, 0.707107], atol=1e-6)
    assert slopes[-1] == np.float32(0.00390625)
    np.testing.assert_allclose(decay_slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125])
    np.testing.assert_allclose(decay_slopes(1), [2**-8])


def test_an_unknown_backend_is_named(arrays):
    with pytest.raises(ValueError, match="'cuda'.*'xla', 'tpu', 'gpu', 'definition'"):
        lightning_attention(*arrays, -RATES, backend="cuda")


def test_rows_split_over_devices():
    """Sequences that end inside a part, span several, follow on padding, or find a part all padding between."""
    draw = np.random.default_rng(5)
    segments = [[1] * 16, [1] * 3 + [2] * 7 + [0] * 6, [0] * 6 + [3] * 9 + [1], [1] * 4 + [0] * 4 + [1] * 5 + [2] * 3]
    q, k, v, weight = draw.normal(size=(4, 4, 16, HEADS, DIM)).astype(np.float32)
    last_weight = draw.normal(size=(4, HEADS, DIM, DIM)).astype(np.float32)
    length = jax.sharding.PartitionSpec(None, "context")
    parts = jax.shard_map(
        lambda *x: context_lightning_attention(*x[:3], -RATES, segment_ids=x[3], axis_name="context"),
        mesh=jax.make_mesh((4,), ("context",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=length,
        out_specs=(length, jax.sharding.PartitionSpec()),
        check_vma=False,
    )

    @partial(jax.jit, static_argnums=0)
    def run(form, q, k, v):
        found, back = jax.vjp(lambda *x: form(*x, np.array(segments, np.int32)), q, k, v)
        return found, back((weight, last_weight))

    whole = lambda *x: lightning_attention(*x[:3], -RATES, segment_ids=x[3])  # noqa: E731
    for a, b in zip(*(jax.tree.leaves(run(form, q, k, v)) for form in (parts, whole)), strict=True):
        near(a, np.asarray(b), 5e-6)
