"""The Hopper kernels through the real ptxas, which knows how many registers there are."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import expert_ffn, gpu_compiler, gpu_ring, token_logprobs
from pallas_kernels.full_size import FAMILIES, cases
from pallas_kernels.gpu_compiler import Kernel, compile_for_hopper, lacking
from pallas_kernels.gpu_targets import DEVICES

compiled = pytest.mark.skipif(lacking() is not None, reason=lacking() or "")
SHARED = 232_448  # bytes that a block of threads may have


def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def sound(program, spilled=0):
    """The names of its kernels, none of which spills more than so many bytes, overflows or worries ptxas."""
    for kernel in program.kernels:
        assert kernel.spilled_bytes <= spilled and kernel.warnings == (), kernel
        assert 3 * 128 * kernel.registers <= 65_536 and kernel.shared_bytes <= SHARED, kernel
    return [kernel.name for kernel in program.kernels]


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chip", DEVICES)
def test_full_size(chip, family):
    for case in cases(FAMILIES[family], "gpu"):
        spilled = 8 if case.kernel == "lightning_attention" else 0
        assert sound(compile_for_hopper(case.run, *case.shapes, chip=chip), spilled), (case.kernel, case.mode)


@compiled
def test_experts_and_their_gradients_do_not_spill():
    def slope(x, chosen, *rest):
        total = lambda x, *rest: expert_ffn(x, chosen, *rest, backend="gpu").astype(jnp.float32).sum()  # noqa: E731
        return jax.grad(total, range(5))(x, *rest)

    wide = array(4, 512, 256)
    shapes = array(1024, 512), array(1024, 2, dtype=jnp.int32), array(1024, 2), wide, wide, array(4, 256, 512)
    names = sound(compile_for_hopper(slope, *shapes))
    # gate with up, down's and the rows' gradients; of the matrices' the two of one shape are one kernel
    assert sorted(names) == ["grouped_matmul"] * 3 + ["transposed_grouped_matmul"] * 2


@compiled
def test_lightning_attention_of_m1_spills_next_to_nothing():
    (case,) = [
        c for c in cases(FAMILIES["minimax_m1"], "gpu") if (c.kernel, c.mode) == ("lightning_attention", "backward")
    ]
    names = sound(compile_for_hopper(case.run, *case.shapes), spilled=8)  # none but with JAX 0.10
    assert set(names) == {"lightning_attention", "lightning_attention_backwards"}


@compiled
def test_registers_decide_whether_it_spills(monkeypatch):
    run, shapes = partial(token_logprobs, backend="gpu"), (array(1, 256, 128), array(128, 512))
    shapes += (array(1, 256, dtype=jnp.int32),)
    assert sound(compile_for_hopper(run, *shapes)) == ["token_logprobs"]
    monkeypatch.setattr(gpu_ring, "MULTIPLYING_REGISTERS", 120)  # the logits alone take 128
    (poor,) = compile_for_hopper(run, *shapes).kernels
    assert poor.spilled_bytes > 0 and "setmaxnreg" in poor.warnings[0]


def test_what_ptxas_says_is_read(tmp_path):
    (tmp_path / "name_12.ptxas").write_text(
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to x\n"
        "    80 bytes stack frame, 24 bytes spill stores, 40 bytes spill loads\n"
        "ptxas info    : Used 168 registers, used 16 barriers, 1 bytes smem\n"
    )
    log = tmp_path / "name_12.mlir-passes.log"
    log.write_text("%a_1 = arith.constant 4096 : i32\n gpu.launch threads() dynamic_shared_memory_size %a_1 {\n")
    warned = ("wgmma.mma_async instructions are serialized due to x",)
    assert gpu_compiler._kernel(tmp_path / "name_12.ptxas") == Kernel("name", 168, 24, 4096, warned)
    log.write_text("")
    with pytest.raises(RuntimeError, match="what ptxas said of name_12 is not as expected"):
        gpu_compiler._kernel(tmp_path / "name_12.ptxas")


def test_what_is_lacking_is_told(monkeypatch):
    monkeypatch.setattr(gpu_compiler, "PLUGINS", ("jax_plugins.none",))
    with pytest.raises(RuntimeError, match=r"pip install jax-cuda13-plugin==\S+ flatbuffers"):
        compile_for_hopper(lambda x: x, array(1))


def test_another_chip_is_told():
    with pytest.raises(ValueError, match="'b200' is not one of h100, h200"):
        gpu_compiler.lower_for_hopper(lambda x: x, array(1), chip="b200")
