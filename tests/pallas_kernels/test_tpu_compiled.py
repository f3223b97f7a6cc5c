"""Every kernel at full size through the real TPU compiler, which knows how much VMEM there is."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from pallas_kernels import expert_ffn, latent_attention_step, lightning_attention, softmax_attention
from pallas_kernels.full_size import FAMILIES, cases
from pallas_kernels.tpu_compiler import TOPOLOGIES, compile_for

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")),
    reason='no libtpu: pip install -e ".[tpu]"',
)


EACH = tuple(zip(TOPOLOGIES, FAMILIES, strict=True))  # every chip and every family once


@pytest.mark.parametrize(
    "chip, family",
    [
        pytest.param(chip, family, marks=pytest.mark.slow if (chip, family) in EACH else pytest.mark.proof)
        for chip in TOPOLOGIES
        for family in FAMILIES
    ],
)
def test_full_size(chip, family):
    for case in cases(FAMILIES[family]):
        program = compile_for(chip, case.run, *case.shapes)
        assert program.flops >= 0.9 * case.least_flops, (case.kernel, case.mode)


def test_lightning_attention_and_its_gradient_keep_nothing_but_arrays_of_their_length():
    (case,) = [c for c in cases(FAMILIES["minimax_m1"]) if (c.kernel, c.mode) == ("lightning_attention", "backward")]
    program = compile_for("v5p", case.run, *case.shapes)
    one = case.shapes[0].size * 2
    assert program.temporary_bytes < 6 * one


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_it_compiles_whatever_precision_products_have_by_default(dtype):
    rows = jax.ShapeDtypeStruct((1, 512, 2, 128), dtype)
    decay = jnp.array([-0.5, -0.01])

    def loss(q, k, v):
        return lightning_attention(q, k, v, decay, backend="tpu")[0].astype(jnp.float32).sum()

    with jax.default_matmul_precision("highest"):
        program = compile_for("v5p", jax.grad(loss, argnums=(0, 1, 2)), rows, rows, rows)
    assert program.kernels


def test_experts_of_m2_where_xla_is_refused():
    (case,) = [c for c in cases(FAMILIES["minimax_m2"]) if (c.kernel, c.mode) == ("expert_ffn", "forward")]
    program = compile_for("v5p", case.run, *case.shapes)
    assert [kernel.name for kernel in program.kernels] == ["grouped_matmul"] * 2
    assert sum(k.moved_bytes for k in program.kernels) < 1.3 * sum(k.least_bytes for k in program.kernels)


def test_softmax_attention_and_its_gradient_keep_nothing_of_queries_times_keys():
    """Of MLA's dims and a length that is no multiple of any block."""
    length, heads = 5000, 2
    bf16 = lambda dim: jax.ShapeDtypeStruct((1, length, heads, dim), jnp.bfloat16)  # noqa: E731
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def gradients(q, k, v, ids):
        attend = lambda *x: softmax_attention(*x, scale=0.1, segment_ids=ids, backend="tpu")[0]  # noqa: E731
        return jax.vjp(attend, q, k, v)[1](v)

    program = compile_for("v5p", gradients, bf16(192), bf16(192), bf16(128), ids)
    assert len(program.kernels) == 3
    assert program.temporary_bytes < length * length


def test_the_latent_cache_is_read_once_where_it_lies():
    bf16 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    positions = jax.ShapeDtypeStruct((32,), jnp.int32)
    step = lambda *x: latent_attention_step(*x, rank=512, scale=0.1, backend="tpu")  # noqa: E731
    cache = bf16(32, 8192, 576)
    program = compile_for("v5p", step, bf16(32, 64, 576), cache, positions)
    assert program.temporary_bytes < cache.size / 10
    assert program.kernels[0].moved_bytes < 1.1 * cache.size * 2


def test_what_does_not_fit_in_vmem_is_refused_by_the_compiler():
    def copy(source, target):
        target[...] = source[...]

    x = jax.ShapeDtypeStruct((1 << 16, 1024), jnp.float32)
    with pytest.raises(Exception, match="(?i)vmem|memory"):
        compile_for("v5e", pl.pallas_call(copy, out_shape=x), x)


def test_a_matrix_too_wide_for_vmem_is_told_before_the_compiler_sees_it():
    bf16 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    wide = bf16(2, 1 << 18, 128)
    with pytest.raises(ValueError, match="do not fit .* bytes of VMEM"):
        compile_for(
            "v5p",
            lambda x, s, gate, down: expert_ffn(x, jnp.zeros((8, 1), int), s, gate, gate, down, backend="tpu"),
            bf16(8, 1 << 18), bf16(8, 1), wide, bf16(2, 128, 1 << 18),
        )  # fmt: skip


def test_another_chip_is_told():
    with pytest.raises(ValueError, match="'v4' is not one of v5e"):
        compile_for("v4", lambda x: x, jax.ShapeDtypeStruct((1,), jnp.float32))
