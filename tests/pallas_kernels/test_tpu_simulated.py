"""TPU kernels in JAX's TPU simulation, with its detection of races, against the definitions in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as simulation
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import Quantized, expert_ffn, grouped_matmul, lightning_attention, tiles, token_logprobs
from pallas_kernels.token_logprobs import slices

SMALL = {
    "lightning_attention": {"chunk": 128, "heads": 2},
    "grouped_matmul": {"rows": 64, "strip": 32},
    "token_logprobs": {"tokens": 16, "vocab": 128},
    "transposed_grouped_matmul": {"rows": 64, "strip": 32, "inner": 128, "outer": 128},
}


@pytest.fixture(scope="module", autouse=True)
def simulated():
    with tiles.compiling_for("v5p", **SMALL), tiles.interpreting(pltpu.InterpretParams(detect_races=True)):
        yield


def simulate(f, *arguments):
    """As one program, and to its end: the simulation calls back into Python, which must find nobody waiting."""
    found = jax.block_until_ready(jax.jit(lambda *x: f(*x))(*jax.tree.map(jnp.asarray, arguments)))
    assert not getattr(simulation.races, "races_found", False)
    return found


def in_float64(f, *arguments):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else x, arguments)
        return jax.tree.map(np.asarray, f(*wide))


def near(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1))


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 99), length=st.integers(1, 300), fastest=st.sampled_from([1e-4, 1.0, 9.2]))
def test_lightning_attention(seed, length, fastest):
    draw = np.random.default_rng(seed)
    q, k, v, g = draw.normal(size=(4, 1, length, 2, 128)).astype(np.float32)
    start, g_last = draw.normal(size=(2, 1, 2, 128, 128)).astype(np.float32)
    decay = -np.array([0.0, fastest], np.float32)
    segments = np.sort(draw.integers(0, 4, size=(1, length)), axis=1)

    def both(backend):
        def run(q, k, v, decay, start):
            def attend(q, k, v, decay, start):
                options = {"segment_ids": segments, "initial_state": start, "backend": backend}
                return lightning_attention(q, k, v, decay, **options)

            out, back = jax.vjp(attend, q, k, v, decay, start)
            return out, back((g.astype(out[0].dtype), g_last.astype(out[1].dtype)))

        return run

    inputs = q, k, v, decay, start
    found, expected = simulate(both("tpu"), *inputs), in_float64(both("definition"), *inputs)
    near(found, expected, 2e-4)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 99), sizes=st.lists(st.sampled_from([0, 1, 7, 64, 100]), min_size=1, max_size=4))
def test_grouped_matmul(seed, sizes):
    draw = np.random.default_rng(seed)
    rows = sum(sizes) + int(draw.integers(1, 50))
    lhs, rhs = draw.normal(size=(rows, 128)), draw.normal(size=(len(sizes), 128, 256))
    gradient = draw.normal(size=(rows, 256))
    lhs, rhs, gradient = (x.astype(np.float32) for x in (lhs, rhs, gradient))

    def both(backend):
        def run(lhs, rhs):
            out, back = jax.vjp(lambda *x: grouped_matmul(*x, jnp.array(sizes, jnp.int32), backend=backend), lhs, rhs)
            return out, back(gradient.astype(out.dtype))

        return run

    near(simulate(both("tpu"), lhs, rhs), in_float64(both("definition"), lhs, rhs), 1e-5)


@pytest.mark.parametrize("kind", ["even", "one expert takes all"])
def test_expert_ffn(kind):
    draw = np.random.default_rng(3)
    tokens, gradient = draw.normal(size=(2, 45, 128)).astype(np.float32)
    chosen = np.argsort(draw.random((45, 4)))[:, :2] if kind == "even" else np.tile([2, 0], (45, 1))
    weights = draw.random((45, 2)).astype(np.float32)
    gate, up = draw.normal(size=(2, 4, 128, 256)).astype(np.float32) / 12
    down = draw.normal(size=(4, 256, 128)).astype(np.float32) / 16

    def both(backend):
        def run(*inputs):
            out, back = jax.vjp(lambda x, *rest: expert_ffn(x, chosen, *rest, backend=backend), *inputs)
            return out, back(gradient.astype(out.dtype))

        return run

    inputs = tokens, weights, gate, up, down
    near(simulate(both("tpu"), *inputs), in_float64(both("definition"), *inputs), 2e-5)


@pytest.mark.parametrize("dtype, block", [("int4", (32, 1)), ("float8_e4m3fn", (128, 128))])
def test_quantised_matrices_are_read_in_the_kernel(dtype, block):
    draw = np.random.default_rng(4)
    values = jnp.asarray(draw.integers(-8, 8, size=(3, 256, 256)), jnp.int8).astype(dtype)
    scales = draw.random((3, 256 // block[0], 256 // block[1])).astype(np.float32)
    lhs, sizes = draw.normal(size=(50, 256)).astype(np.float32), jnp.array([20, 0, 30])
    packed = Quantized(values, jnp.asarray(scales))
    by_hand = np.asarray(values, np.float64) * np.repeat(np.repeat(scales, block[0], 1), block[1], 2)
    expected = np.concatenate([lhs[:20] @ by_hand[0], lhs[20:] @ by_hand[2]])
    for backend in ("tpu", "ragged"):
        product = partial(grouped_matmul, backend=backend)
        near(simulate(product, lhs, packed, sizes), expected, 1e-5)


@pytest.mark.parametrize("tokens, vocab", [(7, 128), (40, 300), (16, 1000)])
def test_token_logprobs(monkeypatch, tokens, vocab):
    monkeypatch.setattr(slices, "SLICE_BYTES", 4 * tokens * 128)
    draw = np.random.default_rng(6)
    hidden, head = draw.normal(size=(1, tokens, 128)), draw.normal(size=(128, vocab)) / 4
    targets, temperature = draw.integers(0, vocab, (1, tokens)), draw.uniform(0.3, 2, (1, tokens))
    gradient = draw.normal(size=(1, tokens))
    hidden, head, temperature = (x.astype(np.float32) for x in (hidden, head, temperature))

    def both(backend):
        def run(hidden, head):
            options = {"temperature": temperature, "backend": backend}
            (logprobs, entropy), back = jax.vjp(lambda *x: token_logprobs(*x, targets, **options), hidden, head)
            return logprobs, entropy, back((gradient.astype(logprobs.dtype), jnp.zeros_like(entropy)))

        return run

    near(simulate(both("tpu"), hidden, head), in_float64(both("definition"), hidden, head), 1e-5)


def test_bfloat16_is_as_near_as_plain_bfloat16():
    """Lightning attention in bfloat16 has no more error than the definition has in it."""
    draw = np.random.default_rng(5)
    q, k, v = draw.normal(size=(3, 1, 200, 2, 128))
    decay = -np.array([0.01, 0.5], np.float32)
    exact = in_float64(lambda *x: lightning_attention(*x, decay, backend="definition")[0], q, k, v)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    error = {}
    for backend in ("tpu", "definition"):
        out = np.asarray(simulate(partial(lightning_attention, backend=backend), *low, decay)[0], np.float64)
        error[backend] = np.sqrt(np.square(out - exact).mean())
    assert error["tpu"] < 1.2 * error["definition"]


def test_shapes_it_cannot_take_are_told():
    x = jnp.zeros((1, 8, 2, 64))
    with pytest.raises(ValueError, match="head_dim=64 is no multiple of the 128 lanes.*backend='xla' can"):
        lightning_attention(x, x, x, jnp.zeros(2), backend="tpu")
    with pytest.raises(ValueError, match="outer=96 is no multiple"):
        grouped_matmul(jnp.zeros((8, 128)), jnp.zeros((2, 128, 96)), jnp.array([4, 4]), backend="tpu")
