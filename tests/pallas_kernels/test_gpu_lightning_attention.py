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


def test_it_lowers_at_full_size_forward_and_backward():
    of_m1 = shapes(16_384)
    text = lower_for_hopper(gradients, *of_m1, of_m1[0], of_m1[-1], chip="h200")
    assert text.count("lightning_attention_backwards") >= 2  # of k and of v
    assert text.count("custom_call @mosaic_gpu") == 4


@pytest.mark.parametrize("length, heads, dim, batch", [(1, 2, 128, 1), (63, 1, 64, 2), (1001, 8, 128, 2)])
def test_it_lowers_at_odd_sizes(length, heads, dim, batch):
    odd = shapes(length, heads, dim, batch)
    assert lower_for_hopper(gradients, *odd, odd[0], odd[-1], chip="h100").count("custom_call @mosaic_gpu") == 4


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


@pytest.fixture
def simulated(monkeypatch):
    """Every kernel as a program of its own: those of one may run at once, and the simulation has one memory."""
    inner = gpu.attend

    def alone(*inputs, chunk, reverse=False):
        run = jax.jit(lambda *x: inner(*x, chunk=chunk, reverse=reverse))
        return jax.block_until_ready(run(*jax.block_until_ready(inputs)))

    monkeypatch.setattr(gpu, "attend", alone)
    with tiles.compiling_for("h200"), tiles.interpreting_gpu(plgpu.InterpretGPUParams(detect_races=True)):
        yield
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    assert not gpu_callbacks.get_races().races_found


def in_float64(f, *arguments):
    with jax.enable_x64(True):
        wide = [
            np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else np.asarray(x) for x in arguments
        ]
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


PACKED = np.repeat([0, 1, 2, 0, 3, 0], [3, 60, 20, 20, 40, 7])[None]  # three chunks, the last partly filled


@SIMULATED
def test_values_and_gradients_are_as_near_as_plain_bfloat16(simulated):
    """Outputs, states and the gradients of q, k, v and the first state; that of the decay is a difference of sums."""
    inputs = example(PACKED.shape[1], [0.0, 9.0], PACKED, dim=64)
    exact = in_float64(partial(gradients, backend="definition"), *inputs)
    plain = gradients(*inputs, backend="xla")
    found = gradients(*inputs)
    for name, pick in {
        **{name: lambda x, i=i: x[0][i] for i, name in enumerate(("out", "state"))},
        **{name: lambda x, i=i: x[1][i] for i, name in ((0, "d_q"), (1, "d_k"), (2, "d_v"), (4, "d_start"))},
    }.items():
        # what a rounding to bfloat16 of both factors costs beside that of the result
        assert error(pick(found), pick(exact)) < max(1.7 * error(pick(plain), pick(exact)), 3e-3), name


@SIMULATED
@pytest.mark.parametrize(
    "inputs",
    [example(300, [0.1], seed=1), example(70, [0.5], batch=2, dim=64, seed=2), example(5, [1.0], dim=64, seed=3)],
    ids=["head_dim 128 and every slot twice", "two rows", "less than a chunk"],
)
def test_it_has_no_more_error_than_the_definition_in_bfloat16(simulated, inputs):
    exact = in_float64(partial(attend, backend="definition"), *inputs[:6])
    plain = attend(*inputs[:6], backend="definition")
    found = attend(*inputs[:6])
    assert error(found[0], exact[0]) < max(1.7 * error(plain[0], exact[0]), 3e-3)
    assert error(found[1], exact[1]) < 3e-3  # what is added to the state has one factor rounded


@SIMULATED
def test_what_padding_holds_is_never_multiplied(simulated):
    q, k, v, decay, segments, start, *_ = example(PACKED.shape[1], [0.0], PACKED, dim=64, seed=5)
    spoil = jnp.where((segments == 0)[..., None, None], jnp.nan, 0).astype(jnp.bfloat16)
    clean = attend(q, k, v, decay, segments, start)
    spoiled = attend(q + spoil, k + spoil, v + spoil, decay, segments, start)
    for a, b in zip(clean, spoiled, strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    assert not np.asarray(clean[0], np.float32)[np.asarray(segments) == 0].any()


def test_it_is_one_of_the_forms():
    assert attention.FORMS["gpu"] is gpu
