"""Grouped products and log-probabilities on Hopper without a GPU: lowered for CUDA, and simulated on the CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call as simulation
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import Quantized, expert_ffn, grouped_matmul, tiles, token_logprobs
from pallas_kernels.gpu_compiler import lower_for_hopper
from pallas_kernels.token_logprobs import gpu as logprobs_gpu

simulated = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="this JAX's simulation lacks products with transposed tiles"
)
SMALL = {
    "grouped_matmul": {"sms": 2, "stages": 3},
    "transposed_grouped_matmul": {"sms": 2},
    "token_logprobs": {"sms": 3, "vocab": 128},
}


def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def simulate(f, *arguments):
    """As one program, and to its end: the simulation calls back into Python, which must find nobody waiting."""
    races = plgpu.InterpretGPUParams(detect_races=True)
    with tiles.compiling_for("h200", **SMALL), tiles.interpreting_gpu(races):
        found = jax.block_until_ready(jax.jit(lambda *x: f(*x))(*jax.tree.map(jnp.asarray, arguments)))
    assert not getattr(simulation.get_races(), "races_found", False)
    return found


def in_float64(f, *arguments):
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, arguments
        )
        return jax.tree.map(np.asarray, jax.jit(f)(*wide))


def near(found, expected, tolerance):
    """In units of each array's root mean square, of which bfloat16 keeps 1/256."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1 / 64, atol=tolerance * max(np.sqrt(np.square(b).mean()), 1e-3))


def draws(seed, *shapes):
    draw = np.random.default_rng(seed)
    return [jnp.asarray(draw.normal(size=shape) / np.sqrt(shape[-2]), jnp.bfloat16) for shape in shapes]


@pytest.mark.parametrize("chip", ["h100", "h200"])
def test_experts_of_m2_lower_forward_and_backward(chip):
    def slope(x, chosen, *rest):
        total = lambda x, *rest: expert_ffn(x, chosen, *rest, backend="gpu").astype(jnp.float32).sum()  # noqa: E731
        return jax.value_and_grad(total, argnums=(0, 1, 2, 3, 4))(x, *rest)

    wide, narrow = array(256, 3072, 1536), array(256, 1536, 3072)
    shapes = array(16_384, 3072), array(16_384, 8, dtype=jnp.int32), array(16_384, 8), wide, wide, narrow
    text = lower_for_hopper(slope, *shapes, chip=chip)
    # gate with up, down; their inputs' gradients; and the gradients of three matrices
    assert text.count("custom_call @mosaic_gpu") == 2 + 2 + 3
    assert lower_for_hopper(partial(expert_ffn, backend="gpu"), *shapes).count("custom_call @mosaic_gpu") == 2


def test_grouped_matmul_lowers_at_full_size():
    def slope(lhs, rhs, sizes):
        return jax.grad(
            lambda *x: grouped_matmul(*x, sizes, block=128, backend="gpu").astype(jnp.float32).sum(), (0, 1)
        )(lhs, rhs)

    shapes = array(163_840, 3072), array(256, 3072, 1536), array(256, dtype=jnp.int32)
    assert lower_for_hopper(slope, *shapes).count("custom_call @mosaic_gpu") == 2  # of the rows and of the matrices
    assert lower_for_hopper(partial(grouped_matmul, block=128, backend="gpu"), *shapes).count("@mosaic_gpu") == 1


def test_token_logprobs_of_m2_lowers_forward_and_backward():
    def slope(hidden, head, targets):
        total = lambda *x: token_logprobs(*x, targets, temperature=0.8, backend="gpu")[0].sum()  # noqa: E731
        return jax.grad(total, (0, 1))(hidden, head)

    text = lower_for_hopper(slope, array(2, 8192, 3072), array(3072, 200_064), array(2, 8192, dtype=jnp.int32))
    assert text.count("custom_call @mosaic_gpu") == 1
    assert "16384x200064" not in text and "2x8192x200064" not in text


@simulated
@pytest.mark.parametrize("sizes", [[256, 0, 128], [0, 0, 0]], ids=str)
def test_grouped_matmul(sizes):
    lhs, rhs, gradient = draws(0, (512, 128), (3, 128, 256), (512, 256))

    def both(backend, **options):
        def run(lhs, rhs, gradient):
            way = partial(grouped_matmul, group_sizes=jnp.array(sizes, jnp.int32), backend=backend, **options)
            out, back = jax.vjp(way, lhs, rhs)
            return out, back(gradient)

        return run

    found = simulate(both("gpu", block=128), lhs, rhs, gradient)
    near(found, in_float64(both("definition"), lhs, rhs, gradient), 1 / 64)
    assert not np.asarray(found[0][sum(sizes) :]).any()
    assert not np.asarray(found[1][1], np.float32)[np.array(sizes) == 0].any()


@simulated
@pytest.mark.parametrize("kind", ["even", "one expert takes all"])
def test_expert_ffn(kind):
    draw = np.random.default_rng(3)
    chosen = np.argsort(draw.random((150, 3)))[:, :2] if kind == "even" else np.tile([2, 0], (150, 1))
    tokens, gradient, gate, up, down = draws(4, (150, 128), (150, 128), (3, 128, 128), (3, 128, 128), (3, 128, 128))
    weights = jnp.asarray(draw.random((150, 2)), jnp.bfloat16)

    def both(backend):
        def run(gradient, *inputs):
            out, back = jax.vjp(lambda x, *rest: expert_ffn(x, chosen, *rest, backend=backend), *inputs)
            return out, back(gradient)

        return run

    inputs = gradient * 12, tokens * 12, weights, gate, up, down
    near(simulate(both("gpu"), *inputs), in_float64(both("definition"), *inputs), 1 / 24)


@simulated
@pytest.mark.parametrize("tokens, vocab", [(40, 328), (260, 1000)])
def test_token_logprobs(tokens, vocab):
    draw = np.random.default_rng(6)
    hidden, head = draws(7, (1, tokens, 128), (128, vocab))
    hidden, head = hidden * 8, head * 2
    targets, temperature = draw.integers(0, vocab, (1, tokens)), draw.uniform(0.3, 2, (1, tokens))
    targets[0, :2] = vocab - 1, 0
    gradient = draw.normal(size=(1, tokens)).astype(np.float32)

    def both(backend):
        def run(hidden, head):
            way = lambda *x: token_logprobs(*x, targets, temperature=temperature, backend=backend)  # noqa: E731
            (logprobs, entropy), back = jax.vjp(way, hidden, head)
            return (logprobs, entropy), back((gradient.astype(logprobs.dtype), jnp.zeros_like(entropy)))

        return run

    found, expected = simulate(both("gpu"), hidden, head), in_float64(both("definition"), hidden, head)
    for a, b in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
    near(found[1], expected[1], 1 / 32)


def test_statistics_of_tiles_fold_into_those_of_all_words():
    """What a warpgroup does with its logits, and what is done with the shares', without a GPU."""
    draw = np.random.default_rng(8)
    logits, scale = draw.normal(size=(64, 328)).astype(np.float32) * 5, draw.uniform(0.3, 2, 64).astype(np.float32)
    target = draw.integers(0, 328, 64).astype(np.int32)
    start = jnp.full(64, logprobs_gpu.NOTHING), *[jnp.zeros(64)] * 3
    parts = []
    for share in range(2):
        state = start
        for wanted in range(128 * share, 328, 256):
            first = min(wanted, 328 - 128)
            state = logprobs_gpu.fold(state, logits[:, first : first + 128], wanted, first, target, scale)
        parts.append(state)
    normaliser, chosen, entropy = logprobs_gpu.joined(*map(jnp.stack, zip(*parts, strict=True)))
    z = logits.astype(np.float64) * scale[:, None]
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(chosen - normaliser, log_p[np.arange(64), target], atol=1e-5)
    np.testing.assert_allclose(entropy, -(np.exp(log_p) * log_p).sum(axis=1), atol=1e-5)


@pytest.mark.parametrize("token_tiles, word_tiles", [(128, 782), (1, 782), (8, 500), (1000, 3), (3, 1)])
def test_sms_stand_in_a_rectangle_that_wastes_few_turns(token_tiles, word_tiles):
    side, shares = logprobs_gpu.rectangle(token_tiles, word_tiles, 132)
    assert side * shares <= 132 and side <= token_tiles and shares <= word_tiles
    turns = -(-token_tiles // side) * -(-word_tiles // shares)
    assert turns <= max(1.1 * token_tiles * word_tiles / 132, 1) + 1


def test_what_it_cannot_take_is_told():
    low = lambda *shape: jnp.zeros(shape, jnp.bfloat16)  # noqa: E731
    sizes = jnp.array([128, 0])
    packed = Quantized(jnp.zeros((2, 128, 128), jnp.int8), jnp.ones((2, 1, 1)))
    for lhs, rhs, block, told in [
        (low(128, 128), packed, 128, "quantised matrices are not dequantised in its kernel; backend='xla' can"),
        (low(128, 128), low(2, 128, 128), None, "needs groups padded to a multiple of 128 rows, and block=None"),
        (low(128, 128), low(2, 128, 128), 64, "block=64 does not promise that"),
        (low(128, 128), low(2, 128, 192), 128, "outer=192 is no multiple of 128"),
        (jnp.zeros((128, 128)), low(2, 128, 128), 128, "bfloat16 alone, not float32 rows"),
    ]:
        with pytest.raises(ValueError, match=told):
            grouped_matmul(lhs, rhs, sizes, block=block, backend="gpu")
    with pytest.raises(ValueError, match="vocab=100 is no multiple of 8"):
        token_logprobs(low(1, 8, 64), low(64, 100), jnp.zeros((1, 8), jnp.int32), backend="gpu")
