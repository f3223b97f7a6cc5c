"""Softmax attention against NumPy position by position, against its definition in float64, and against torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.softmax_attention import cached_attention, latent_attention_step, softmax_attention, xla

BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 2, 13, 6, 2, 8
SCALE = HEAD_DIM**-0.5


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
    found = jax.jit(lambda *x: xla.attend(*x, segments, segments, scale=SCALE, **cut)[0])(*arrays)
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
            xla.attend(*x, segments, segments, scale=SCALE, shortest_stretch=stretch, query_block=block)[0] * cotangent
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
    found = softmax_attention(*(jnp.asarray(x, jnp.bfloat16) for x in arrays), segment_ids=segments, scale=SCALE)[0]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), by_hand(*arrays, segments), atol=0.05)


def test_large_scores_do_not_overflow(inputs):
    (q, k, v), segments = inputs
    found = softmax_attention(1e3 * q, 1e3 * k, v, segment_ids=segments, scale=SCALE)[0]
    np.testing.assert_allclose(found, by_hand(1e3 * q, 1e3 * k, v, segments), atol=1e-4)


def in_float64(f, *arguments):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else x, arguments)
        return jax.tree.map(np.asarray, f(*wide))


def near(found, expected, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_array_equal(np.isinf(a), np.isinf(b))
        a, b = np.where(np.isinf(b), 0, a), np.where(np.isinf(b), 0, b)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1))


def drawn(seed, keys, start, kv_heads, group, head_dim, value_dim):
    """q, k, v and a gradient of the outputs, of the queries from ``start`` on, and the segments of all positions."""
    draw = np.random.default_rng(seed)
    shapes = [(2, keys, kv_heads * group, head_dim), (2, keys, kv_heads, head_dim), (2, keys, kv_heads, value_dim)]
    q, k, v, g = (draw.normal(size=shape).astype(np.float32) for shape in (*shapes, (*shapes[0][:3], value_dim)))
    segments = np.sort(draw.integers(0, 4, (2, keys)), axis=1)
    segments[1] = (segments[1] + 2) % 4  # with the padding inside
    return q[:, start:], k, v, g[:, start:], segments


def value_and_gradients(q, k, v, g, segments, start, backend, traced=False):
    """Outputs of what is no padding, peaks and the gradients."""
    real = (segments[:, start:] != 0)[..., None, None]

    def run(q, k, v):
        def attend(q, k, v):
            options = {"kv_segment_ids": segments, "query_start": begin, "backend": backend, "scale": 0.3}
            return softmax_attention(q, k, v, segment_ids=segments[:, start:], **options)

        begin = jnp.int32(start) if traced else start
        (out, peaks), back = jax.vjp(attend, q, k, v)
        return jnp.where(real, out, 0), peaks, back((jnp.where(real, g, 0).astype(out.dtype), jnp.ones_like(peaks)))

    return jax.jit(run)(q, k, v)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 99),
    keys=st.sampled_from([1, 65, 300]),
    started=st.sampled_from([0, 0.3, 0.9]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    dims=st.sampled_from([(8, 8), (12, 8), (8, 24)]),
    traced=st.booleans(),
)
def test_it_is_the_definition_with_all_gradients(seed, keys, started, kv_heads, group, dims, traced):
    start = int(started * keys)
    *arrays, segments = drawn(seed, keys, start, kv_heads, group, *dims)
    found = value_and_gradients(*arrays, segments, start, None, traced)
    expected = in_float64(lambda *x: value_and_gradients(*x, segments, start, "definition"), *arrays)
    near(found, expected)


def test_the_definition_is_right(inputs):
    """Against NumPy position by position, with padding that sees nothing and peaks that do not see padding."""
    (q, k, v), segments = inputs
    q = np.where((segments == 0)[..., None, None], 100 * q, q)
    found, peaks = softmax_attention(q, k, v, segment_ids=segments, scale=SCALE, backend="definition")
    expected = by_hand(q, k, v, segments) * (segments != 0)[..., None, None]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    largest = np.full(HEADS, -np.inf)
    for b, i, h in np.ndindex(BATCH, LENGTH, HEADS):
        seen = [j for j in range(i + 1) if segments[b, j] == segments[b, i] != 0]
        largest[h] = max([largest[h], *(SCALE * q[b, i, h] @ k[b, j, h // 3] for j in seen)])
    np.testing.assert_allclose(peaks, largest, rtol=1e-5)


def test_it_is_torchs(inputs):
    torch = pytest.importorskip("torch")
    arrays, _ = inputs
    tensors = [torch.tensor(x).transpose(1, 2).requires_grad_() for x in arrays]
    q, k, v = tensors[0], *(x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in tensors[1:])
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE)
    (out**2).sum().backward()
    expected = [x.transpose(1, 2).numpy() for x in (out.detach(), *(x.grad for x in tensors))]
    found, back = jax.vjp(lambda *x: softmax_attention(*x, scale=SCALE)[0], *arrays)
    near([found, *back(2 * found)], expected, 5e-6)


def test_queries_split_over_devices(inputs):
    """Each device has a part of the queries and all keys, and knows where its part begins when it runs."""
    arrays, _ = inputs
    q, k, v = (np.concatenate([x, x[:, :3]], axis=1) for x in arrays)
    segments = np.repeat([[1, 2, 0], [1, 3, 1]], [5, 8, 3], axis=1)
    length, everywhere = jax.sharding.PartitionSpec(None, "context"), jax.sharding.PartitionSpec()

    def part(q, k, v, mine, all_of_them):
        start = jax.lax.axis_index("context") * q.shape[1]
        options = {"segment_ids": mine, "kv_segment_ids": all_of_them, "query_start": start, "scale": SCALE}
        out, peaks = softmax_attention(q, k, v, **options)
        return out, jax.lax.pmax(peaks, "context")

    found = jax.shard_map(
        part,
        mesh=jax.make_mesh((4,), ("context",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(length, everywhere, everywhere, length, everywhere),
        out_specs=(length, everywhere),
        check_vma=False,
    )(q, k, v, segments, segments)
    near(found, softmax_attention(q, k, v, segment_ids=segments, scale=SCALE))


def test_a_query_before_all_keys_of_its_segment_gets_zeros():
    x = np.ones((1, 4, 1, 8), np.float32)
    for backend in ("xla", "definition"):
        options = {"segment_ids": np.ones((1, 2), int), "kv_segment_ids": np.array([[2, 2, 1, 1]]), "backend": backend}
        attend = partial(softmax_attention, scale=1.0, query_start=1, **options)
        (out, peaks), back = jax.vjp(lambda q, attend=attend: attend(q, x, 2 * x), x[:, :2])
        np.testing.assert_allclose(out[0, :, 0, 0], [0, 2])
        assert peaks.tolist() == [8] and not np.any(back((jnp.ones_like(out), peaks))[0])


@pytest.mark.parametrize("new", [1, 3])
def test_a_cache_gives_what_whole_rows_give(inputs, new):
    (q, k, v), _ = inputs
    whole, _ = softmax_attention(q, k, v, scale=SCALE)
    keys = np.pad(k.transpose(0, 2, 3, 1), [(0, 0)] * 3 + [(0, 5)], constant_values=7)
    values = np.pad(v.swapaxes(1, 2), [(0, 0)] * 2 + [(0, 5), (0, 0)], constant_values=7)
    positions = np.array([[6], [9]]) + np.arange(new)
    found = cached_attention(q[np.arange(2)[:, None], positions], keys, values, positions, scale=SCALE)
    np.testing.assert_allclose(found, whole[np.arange(2)[:, None], positions], atol=2e-6)


def test_a_step_over_latents_is_attention_with_one_key_for_all_heads():
    draw = np.random.default_rng(4)
    q, cache = draw.normal(size=(3, 5, 12)).astype(np.float32), draw.normal(size=(3, 17, 12)).astype(np.float32)
    positions = np.array([0, 7, 16])
    expected = np.zeros((3, 5, 8))
    for b, h in np.ndindex(3, 5):
        seen = cache[b, : positions[b] + 1].astype(np.float64)
        weights = np.exp(0.3 * seen @ q[b, h])
        expected[b, h] = weights / weights.sum() @ seen[:, :8]
    for backend in (None, "xla", "definition"):
        found = latent_attention_step(q, cache, positions, rank=8, scale=0.3, backend=backend)
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_what_cannot_be_is_told(inputs):
    arrays, segments = inputs
    with pytest.raises(ValueError, match="kv_segment_ids is missing for 5 queries and 13 keys"):
        softmax_attention(arrays[0][:, :5], *arrays[1:], segment_ids=segments[:, :5], scale=SCALE)
    with pytest.raises(ValueError, match="head_dim=8 is no multiple of 64.*backend='xla' can"):
        softmax_attention(*arrays, scale=SCALE, backend="tpu")
    with pytest.raises(ValueError, match="'pallas'.*'xla', 'tpu', 'definition'"):
        softmax_attention(*arrays, scale=SCALE, backend="pallas")
    with pytest.raises(ValueError, match="rank=8 is no multiple of the 128 lanes"):
        latent_attention_step(arrays[0][:, 0], arrays[1][:, :, 0], np.zeros(2, int), rank=8, scale=1.0, backend="tpu")
