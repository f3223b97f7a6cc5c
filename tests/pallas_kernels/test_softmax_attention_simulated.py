"""The TPU kernels of softmax attention in JAX's TPU simulation, with its detection of races, against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as simulation
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import latent_attention_step, softmax_attention, tiles

BLOCKS = {"queries": 128, "keys": 128, "heads": 2}
SMALL = {"softmax_attention": BLOCKS, "softmax_attention_backward": BLOCKS, "latent_attention_step": {"tokens": 128}}


@pytest.fixture(scope="module", autouse=True)
def simulated():
    with tiles.compiling_for("v5p", **SMALL), tiles.interpreting(pltpu.InterpretParams(detect_races=True)):
        yield


def simulate(f, *arguments):
    """As one program, and to its end: the simulation calls back into Python, which must find nobody waiting."""
    found = jax.block_until_ready(jax.jit(lambda *x: f(*x))(*arguments))
    assert not getattr(simulation.races, "races_found", False)
    return found


def in_float64(f, *arguments):
    with jax.enable_x64(True):
        wide = (np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else x for x in arguments)
        return jax.tree.map(np.asarray, jax.jit(lambda *x: f(*x))(*wide))


def near(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_array_equal(np.isinf(a), np.isinf(b))
        a, b = np.where(np.isinf(b), 0, a), np.where(np.isinf(b), 0, b)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1))


# heads, key/value heads, head_dim, value_dim: groups, groups in two steps, one key/value head each, MLA's, half lanes
HEADS = [(2, 1, 128, 128), (4, 1, 128, 128), (2, 2, 128, 128), (2, 2, 192, 128), (4, 2, 64, 64)]


@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 99),
    keys=st.sampled_from([1, 130, 256, 300]),
    started=st.sampled_from([0, 0, 0.5]),
    segments=st.sampled_from(["packed", "one", "anyhow"]),
    heads=st.sampled_from(HEADS),
)
def test_it_is_the_definition_with_all_gradients(seed, keys, started, segments, heads):
    draw, start = np.random.default_rng(seed), int(started * keys)
    heads, kv_heads, head_dim, value_dim = heads
    q, g = (draw.normal(size=(1, keys - start, heads, dim)).astype(np.float32) for dim in (head_dim, value_dim))
    k, v = (draw.normal(size=(1, keys, kv_heads, dim)).astype(np.float32) for dim in (head_dim, value_dim))
    ids = np.ones((1, keys), np.int32) if segments == "one" else draw.integers(0, 4, (1, keys))
    ids = np.sort(ids, axis=1) if segments == "packed" else ids

    def both(backend):
        def run(q, k, v, start):
            def attend(q, k, v):
                options = {"segment_ids": ids[:, -q.shape[1] :], "kv_segment_ids": ids, "query_start": start}
                return softmax_attention(q, k, v, **options, scale=head_dim**-0.5, backend=backend)

            (out, peaks), back = jax.vjp(attend, q, k, v)
            return out, peaks, back((g.astype(out.dtype), jnp.ones_like(peaks)))

        return run

    inputs = q, k, v, np.int32(start)
    found, expected = simulate(both("tpu"), *inputs), in_float64(both("definition"), *inputs)
    near(found, expected)
    assert not np.any(np.asarray(found[0])[ids[:, start:] == 0])


def test_blocks_that_do_not_meet_are_not_read():
    """What lies in the blocks of other sequences and after a query cannot matter, even if it is no number."""
    draw = np.random.default_rng(0)
    q, k, v = draw.normal(size=(3, 1, 384, 2, 128)).astype(np.float32)
    ids = np.repeat([[1, 2, 3]], 128, axis=1)
    expected = softmax_attention(q, k, v, segment_ids=ids, scale=0.1, backend="definition")[0]
    k[:, 256:], v[:, :128] = np.nan, np.nan
    found = simulate(lambda *x: softmax_attention(*x, segment_ids=ids, scale=0.1, backend="tpu")[0], q, k, v)
    near(found[:, 128:256], expected[:, 128:256])


@pytest.mark.parametrize("length, heads, width", [(300, 4, 192), (128, 3, 160), (5, 8, 192)])
def test_latent_step(length, heads, width):
    draw = np.random.default_rng(1)
    q, cache = draw.normal(size=(4, heads, width)), draw.normal(size=(4, length, width))
    positions = np.array([0, length // 2, min(length - 1, 127), length - 1])
    q, cache = (x.astype(np.float32) for x in (q, cache))

    def step(backend):
        return lambda q, cache: latent_attention_step(q, cache, positions, rank=128, scale=0.1, backend=backend)

    expected = in_float64(step("definition"), q, cache)
    unused = np.arange(length) // 128 > positions[:, None] // 128  # in whole blocks that no query reaches
    cache = np.where(unused[..., None], np.nan, cache)
    near(simulate(step("tpu"), q, cache), expected)


def test_bfloat16_is_as_near_as_plain_bfloat16():
    """Outputs, gradients and the decoding step have no more error than the definition has in bfloat16."""
    draw = np.random.default_rng(5)
    arrays = [draw.normal(size=(1, 200, heads, 128)) for heads in (2, 1, 1, 2)]
    latent = draw.normal(size=(2, 8, 192)), draw.normal(size=(2, 200, 192))

    def everything(backend):
        def run(q, k, v, g, latent_q, cache):
            attend = lambda *x: softmax_attention(*x, scale=0.1, backend=backend)[0]  # noqa: E731
            out, back = jax.vjp(attend, q, k, v)
            positions = np.array([50, 199])
            step = latent_attention_step(latent_q, cache, positions, rank=128, scale=0.1, backend=backend)
            return out, *back(g.astype(out.dtype)), step

        return run

    low = [jnp.asarray(x, jnp.bfloat16) for x in (*arrays, *latent)]
    exact = in_float64(everything("definition"), *(np.asarray(x, np.float32) for x in low))
    found, plain = simulate(everything("tpu"), *low), simulate(everything("definition"), *low)
    error = lambda x, y: np.sqrt(np.square(np.asarray(x, np.float64) - y).mean())  # noqa: E731
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert error(ours, truth) < 1.1 * error(theirs, truth)
