"""Attention and its rotary embedding against NumPy, position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.models.architecture import RopeScaling
from posttrain_jax.models.parts import rms_norm
from posttrain_jax.models.rope import inverse_frequencies, rotate
from posttrain_jax.models.softmax_attention import segment_attention

BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 2, 13, 6, 2, 8
SCALE = HEAD_DIM**-0.5


def rotary(positions, dim, theta):
    angle = np.asarray(positions)[..., None] * inverse_frequencies(dim, theta, RopeScaling())
    return jnp.cos(angle), jnp.sin(angle)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    shapes = [(BATCH, LENGTH, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    segments = np.stack([np.repeat([1, 2, 0], [5, 6, 2]), np.repeat([3, 1, 3], [1, 4, 8])])
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes], segments


def by_hand(q, k, v, segments):
    """softmax(q·k/√d)·v over the keys each query may see, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            seen = [j for j in range(i + 1) if segments[b, j] == segments[b, i]]
            for h in range(q.shape[2]):
                shared = h // (q.shape[2] // k.shape[2])
                scores = k[b, seen, shared] @ q[b, i, h] / np.sqrt(q.shape[3])
                weights = np.exp(scores - scores.max())
                out[b, i, h] = weights / weights.sum() @ v[b, seen, shared]
    return out


@pytest.mark.parametrize(("stretch", "block"), [(64, 512), (13, 13), (13, 5), (13, 1), (6, 512), (1, 512), (5, 2)])
def test_forward(inputs, stretch, block):
    arrays, segments = inputs
    cut = {"shortest_stretch": stretch, "query_block": block}
    found = jax.jit(lambda *x: segment_attention(*x, segments, scale=SCALE, **cut)[0])(*arrays)
    np.testing.assert_allclose(found, by_hand(*arrays, segments), atol=2e-6)


@pytest.mark.parametrize(("stretch", "block"), [(64, 512), (13, 5), (4, 512), (5, 2)])
def test_gradient_is_that_of_plain_softmax(inputs, stretch, block):
    """The hand-written backward pass against autodiff of the textbook form, and against finite differences."""
    arrays, segments = inputs
    cotangent = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)

    def plain(q, k, v):
        k, v = (jnp.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / HEAD_DIM**0.5
        seen = (segments[:, :, None] == segments[:, None, :]) & np.tri(LENGTH, dtype=bool)
        weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
        return (jnp.einsum("bhqk,bkhd->bqhd", weights, v) * cotangent).sum()

    def ours(*x):
        return (
            segment_attention(*x, segments, scale=SCALE, shortest_stretch=stretch, query_block=block)[0] * cotangent
        ).sum()

    found = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*arrays)
    expected = jax.jit(jax.grad(plain, argnums=(0, 1, 2)))(*arrays)
    rng = np.random.default_rng(2)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(a, b, atol=5e-6)
        direction = rng.normal(size=a.shape)
        at = lambda h: by_hand(*arrays[:i], arrays[i] + h * direction, *arrays[i + 1 :], segments)  # noqa: E731, B023
        slope = ((at(1e-5) - at(-1e-5)) * cotangent).sum() / 2e-5
        assert (np.asarray(a) * direction).sum() == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_bfloat16_stays_near(inputs):
    arrays, segments = inputs
    found = segment_attention(*(jnp.asarray(x, jnp.bfloat16) for x in arrays), segments, scale=SCALE)[0]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), by_hand(*arrays, segments), atol=0.05)


def test_large_scores_do_not_overflow(inputs):
    (q, k, v), segments = inputs
    found = segment_attention(1e3 * q, 1e3 * k, v, segments, scale=SCALE)[0]
    np.testing.assert_allclose(found, by_hand(1e3 * q, 1e3 * k, v, segments), atol=1e-4)


def test_rotation_is_half_split_on_part_of_the_head():
    """Dimension i turns with i + half, i < half; dimensions from 2·half on pass through."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, 3, 10)).astype(np.float32)
    positions, rotary_dim, theta = np.array([[0, 1, 7, 500]]), 6, 1e4
    found = rotate(x, rotary(positions, rotary_dim, theta))
    expected = x.astype(np.float64)
    for t, position in enumerate(positions[0]):
        for i in range(rotary_dim // 2):
            angle = position * theta ** (-2 * i / rotary_dim)
            a, b = x[0, t, :, i].astype(np.float64), x[0, t, :, i + rotary_dim // 2].astype(np.float64)
            expected[0, t, :, i] = a * np.cos(angle) - b * np.sin(angle)
            expected[0, t, :, i + rotary_dim // 2] = b * np.cos(angle) + a * np.sin(angle)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found[..., rotary_dim:], x[..., rotary_dim:])
    np.testing.assert_array_equal(found[:, 0], x[:, 0])


def test_scores_depend_on_distance_alone():
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(i, j):
        turned = [rotate(x, rotary(np.array([[position]]), 8, 1e4)) for x, position in ((q, i), (k, j))]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_norm_is_of_the_root_mean_square_in_float32():
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32) * 1e-3
    scale = np.linspace(0.5, 2, 16, dtype=np.float32)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(rms_norm(x, scale, 1e-6), expected, rtol=1e-5)
    half = rms_norm(jnp.asarray(1e4 * x, jnp.bfloat16), scale, 1e-6)
    assert half.dtype == jnp.bfloat16 and np.isfinite(half.astype(np.float32)).all()
