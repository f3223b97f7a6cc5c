"""Lightning attention on Hopper without a GPU: lowered for CUDA, and run in JAX's simulation of Mosaic GPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import lightning_attention, tiles
from pallas_kernels.gpu_compiler import lower_for_hopper
from pallas_kernels.lightning_attention import attention, gpu

SIMULATED = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="this JAX does not simulate layouts of Mosaic GPU"
)


def shapes(length, heads=64, dim=128, batch=1):
    x = jax.ShapeDtypeStruct((batch, length, heads, dim), jnp.bfloat16)
    state = jax.ShapeDtypeStruct((batch, heads, dim, dim), jnp.float32)
    return x, x, x, jax.ShapeDtypeStruct((heads,), jnp.float32), jax.ShapeDtypeStruct((batch, length), jnp.int32), state


def attend(q, k, v, decay, segments, start, backend="gpu"):
    return lightning_attention(q, k, v, decay, segment_ids=segments, initial_state=start, backend=backend)


def gradients(q, k, v, decay, segments, start, g, g_last, backend="gpu"):
    run = lambda q, k, v, decay, start: attend(q, k, v, decay, segments, start, backend)  # noqa: E731
    out, back = jax.vjp(run, q, k, v, decay, start)
    return out, back((g.astype(out[0].dtype), g_last.astype(out[1].dtype)))


@pytest.mark.parametrize("chip", ["h100", "h200"])
def test_it_lowers_at_full_size_forward_and_backward(chip):
    of_m1 = shapes(16_384)
    text = lower_for_hopper(gradients, *of_m1, of_m1[0], of_m1[-1], chip=chip)
    assert text.count("lightning_attention_backwards") >= 2  # of k and of v
    assert text.count("custom_call @mosaic_gpu") == 4


@pytest.mark.parametrize("length, heads, dim, batch", [(1, 2, 128, 1), (63, 1, 64, 2), (1001, 8, 128, 2)])
def test_it_lowers_at_odd_sizes(length, heads, dim, batch):
    odd = shapes(length, heads, dim, batch)
    assert lower_for_hopper(gradients, *odd, odd[0], odd[-1]).count("custom_call @mosaic_gpu") == 4


def test_every_supported_slot_count_fits_in_shared_memory():
    with tiles.compiling_for("h200"):
        slots = tiles.lookup("lightning_attention")["slots"]
    assert slots % 2 == 0  # a slot always meets the same writer, which counts its turns
    assert gpu.shared_bytes(slots, 128) <= 232_448 < gpu.shared_bytes(slots + 2, 128)


def test_shapes_it_cannot_take_are_told():
    x, decay = jnp.zeros((1, 8, 2, 128)), jnp.zeros(2)
    for wrong, chunk, told in [
        (x, None, "float32 arrays; its matrix products take bfloat16; backend='xla' can"),
        (jnp.zeros((1, 8, 2, 96), jnp.bfloat16), None, "head_dim=96 is neither 64 nor 128"),
        (x.astype(jnp.bfloat16), 128, "chunk=128 is not 64"),
    ]:
        with pytest.raises(ValueError, match=told):
            lightning_attention(wrong, wrong, wrong, decay, chunk=chunk, backend="gpu")


def simulate(f, *arguments):
    """As one program, and to its end: the simulation calls back into Python, which must find nobody waiting."""
    with tiles.compiling_for("h200"), tiles.interpreting_gpu():
        return jax.block_until_ready(jax.jit(lambda *x: f(*x))(*jax.tree.map(jnp.asarray, arguments)))


def in_float64(f, *arguments):
    with jax.enable_x64(True):
        wide = [np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else np.asarray(x) for x in arguments]
        return jax.tree.map(lambda x: np.asarray(x, np.float64), f(*wide))


def error(found, exact):
    """Root mean square of the error beside that of what is exact."""
    found = np.asarray(found, np.float64)
    assert np.isfinite(found).all()
    return np.sqrt(np.square(found - exact).mean() / max(np.square(exact).mean(), 1e-30))


def example(length, decay, segments=None, batch=1, dim=128, seed=0):
    draw = np.random.default_rng(seed)
    q, k, v, g = (jnp.asarray(x, jnp.bfloat16) for x in draw.normal(size=(4, batch, length, len(decay), dim)))
    start, g_last = (jnp.asarray(x, jnp.float32) for x in draw.normal(size=(2, batch, len(decay), dim, dim)))
    segments = np.ones((batch, length), np.int32) if segments is None else np.asarray(segments, np.int32)
    return q, k, v, -jnp.asarray(decay, jnp.float32), jnp.asarray(segments), start, g, g_last


PACKED = np.repeat([0, 1, 2, 0, 3, 0], [3, 90, 20, 40, 60, 14])[None]


@SIMULATED
@pytest.mark.parametrize(
    "inputs",
    [
        example(256, [0.0, 0.1]),
        example(150, [0.02, 9.0], seed=1),
        example(PACKED.shape[1], [0.0, 0.3], PACKED, seed=2),
        example(70, [0.5], np.ones((2, 70)), batch=2, dim=64, seed=3),
        example(5, [1.0], seed=4),
    ],
    ids=["whole chunks", "part of a chunk", "packed with padding", "two rows of head_dim 64", "less than a chunk"],
)
def test_values_and_gradients_are_as_near_as_plain_bfloat16(inputs):
    """Outputs, states and the gradients of q, k, v and the first state; that of the decay is a difference of sums."""
    exact = in_float64(partial(gradients, backend="definition"), *inputs)
    plain = gradients(*inputs, backend="xla")
    found = simulate(gradients, *inputs)
    named = lambda x: dict(zip(("out", "state", "q", "k", "v", "start"), (*x[0], *x[1][:3], x[1][4]), strict=True))  # noqa: E731
    exact, plain, found = named(exact), named(plain), named(found)
    for name in exact:
        # what one rounding to bfloat16 of every factor costs: 2^-9 / sqrt(3), a few times over
        assert error(found[name], exact[name]) < max(1.5 * error(plain[name], exact[name]), 4e-3), name


@SIMULATED
def test_what_padding_holds_is_never_multiplied():
    q, k, v, decay, segments, start, *_ = example(PACKED.shape[1], [0.0], PACKED, seed=5)
    spoil = jnp.where((segments == 0)[..., None, None], jnp.nan, 0).astype(jnp.bfloat16)
    clean = simulate(attend, q, k, v, decay, segments, start)
    spoiled = simulate(attend, q + spoil, k + spoil, v + spoil, decay, segments, start)
    for a, b in zip(clean, spoiled, strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    assert not np.asarray(clean[0], np.float32)[np.asarray(segments) == 0].any()


@SIMULATED
def test_it_has_no_more_error_than_the_definition_in_bfloat16():
    q, k, v, decay, segments, start, *_ = example(200, [0.01, 0.5], seed=6)
    start = jnp.zeros_like(start)
    exact = in_float64(partial(attend, backend="definition"), q, k, v, decay, segments, start)[0]
    found = simulate(attend, q, k, v, decay, segments, start)[0]
    plain = attend(q, k, v, decay, segments, start, backend="definition")[0]
    assert error(found, exact) < 1.2 * error(plain, exact) + 2e-3


@SIMULATED
def test_warpgroups_do_not_race():
    q, k, v, decay, segments, start, *_ = example(600, [0.1], dim=64, seed=7)
    with tiles.compiling_for("h200"), tiles.interpreting_gpu(plgpu.InterpretGPUParams(detect_races=True)):
        out, _ = jax.block_until_ready(jax.jit(lambda *x: attend(*x))(q, k, v, decay, segments, start))
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    assert not gpu_callbacks.get_races().races_found
    assert error(out, in_float64(partial(attend, backend="xla"), q, k, v, decay, segments, start)[0]) < 1e-2


def test_it_is_one_of_the_forms():
    assert attention.FORMS["gpu"] is gpu
