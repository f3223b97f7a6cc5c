"""Every kernel at full size through the real TPU compiler, which knows how much VMEM there is."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from pallas_kernels import expert_ffn
from pallas_kernels.full_size import FAMILIES, cases
from pallas_kernels.tpu_compiler import TOPOLOGIES, compile_for

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")),
    reason='no libtpu: pip install -e ".[tpu]"',
)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_full_size(chip, family):
    for case in cases(FAMILIES[family]):
        program = compile_for(chip, case.run, *case.shapes)
        assert program.flops >= 0.9 * case.least_flops, (case.kernel, case.mode)


def test_lightning_attention_and_its_gradient_keep_nothing_but_arrays_of_their_length():
    (case,) = [c for c in cases(FAMILIES["minimax_m1"]) if (c.kernel, c.mode) == ("lightning_attention", "backward")]
    program = compile_for("v5p", case.run, *case.shapes)
    one = case.shapes[0].size * 2
    assert program.temporary_bytes < 6 * one


def test_experts_of_m2_where_xla_is_refused():
    (case,) = [c for c in cases(FAMILIES["minimax_m2"]) if (c.kernel, c.mode) == ("expert_ffn", "forward")]
    program = compile_for("v5p", case.run, *case.shapes)
    assert [kernel.name for kernel in program.kernels] == ["grouped_matmul"] * 2
    assert sum(k.moved_bytes for k in program.kernels) < 1.2 * sum(k.least_bytes for k in program.kernels)


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
