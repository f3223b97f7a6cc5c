"""Programs for a slice of TPUs through the real TPU compiler: what they hold, and what they send."""

import dataclasses
import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pallas_kernels import tiles, tpu_compiler
from posttrain_jax.models import kimi_k2, minimax_m2
from posttrain_jax.models.decoder import Decoder, abstract
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.parallel import placement
from posttrain_jax.parallel.attention import segment_attention
from posttrain_jax.parallel.experts import experts
from posttrain_jax.parallel.overlap import compiler_options
from posttrain_jax.planning import hlo
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")),
    reason='no libtpu: pip install -e ".[tpu]"',
)


def compiled(f, *shapes):
    """``f`` for v5p: the text of what the compiler made, and its memory."""
    with tiles.compiling_for("v5p"), tpu_compiler.uncached():
        program = jax.jit(f).trace(*shapes).lower(lowering_platforms=("tpu",)).compile()
    return program.as_text(), program.memory_analysis()


def shaped(mesh, shape, axes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.sharding(axes, shape, mesh))


def test_experts_of_m2_are_exchanged_in_rounds():
    """4,096 tokens a chip, 64 experts on each: kernels, ragged exchanges, and no more memory than the rounds take."""
    arch = minimax_m2.FULL
    mesh = meshes.make_mesh(fsdp=2, expert=4, devices=tpu_compiler.devices("v5p:2x2x2"))
    rows, inward = ("batch", "length", None), ("expert", "embed", "expert_ffn")
    width, inner, number, top_k = arch.hidden, arch.expert_ffn, arch.experts, arch.experts_per_token
    shapes = (
        shaped(mesh, (8, 4096, width), rows),
        shaped(mesh, (8, 4096, top_k), rows, jnp.int32),
        shaped(mesh, (8, 4096, top_k), rows),
        shaped(mesh, (number, width, inner), inward),
        shaped(mesh, (number, width, inner), inward),
        shaped(mesh, (number, inner, width), ("expert", "expert_ffn", "embed")),
    )

    text, memory = compiled(placement.on(mesh)(experts), *shapes)
    assert text.count("ragged-all-to-all(") == 2
    assert "tpu_custom_call" in text
    matrices, slots = 3 * number // 4 * width * inner * 2, 4096 * top_k * width * 2
    assert memory.temp_size_in_bytes < matrices + 8 * slots


def test_experts_of_kimi_k2_go_to_the_sampler_in_even_parts():
    """384 experts do not divide over 512 chips, yet none holds more than its part; nor is a matrix whole on the way."""
    arch = dataclasses.replace(kimi_k2.INSTRUCT, layers=2)
    mesh = meshes.make_mesh(fsdp=8, expert=32, context=2, devices=tpu_compiler.devices("v5p:8x8x8"))
    limits = Limits(slots=512, max_prompt=128, max_response=128, decode_chunk=4, prefill_batch=512, stop_tokens=(0,))
    engine = Engine(arch, limits, compute_dtype="bfloat16", mesh=mesh)
    _, weights = abstract(lambda: Decoder(arch, rngs=nnx.Rngs(0)), mesh)
    load, arguments = engine.programs(weights, mesh)["transfer"]
    text, memory = compiled(load, *arguments)
    routed = 3 * arch.experts * arch.hidden * arch.expert_ffn
    rest = arch.parameters - routed  # in copies, the head in float32
    assert memory.output_size_in_bytes < 2 * (routed / mesh.size + rest + arch.hidden * arch.vocab) * 1.02
    assert memory.temp_size_in_bytes < 2 * routed / mesh.shape["expert"]
    assert "all-to-all" in text


def test_matrices_that_are_fetched_travel_beside_a_kernel():
    """Gathers stay gathers, and one of them runs inside the call of the attention's kernel, which does not need it."""
    arch = minimax_m2.FULL
    mesh = meshes.make_mesh(fsdp=4, expert=2, devices=tpu_compiler.devices("v5p:2x2x2"))
    rows, inward = ("batch", "length", None), ("expert", "embed", "expert_ffn")
    number, inner, width, top_k = 64, arch.expert_ffn, arch.hidden, arch.experts_per_token
    shapes = (
        shaped(mesh, (8, 4096, width), rows),
        shaped(mesh, (8, 4096, top_k), rows, jnp.int32),
        shaped(mesh, (8, 4096, top_k), rows),
        shaped(mesh, (number, width, inner), inward),
        shaped(mesh, (number, width, inner), inward),
        shaped(mesh, (number, inner, width), ("expert", "expert_ffn", "embed")),
        shaped(mesh, (8, 4096, arch.heads, arch.head_dim), (*rows, None)),
        shaped(mesh, (8, 4096, arch.kv_heads, arch.head_dim), (*rows, None)),
        shaped(mesh, (8, 4096), rows[:2], jnp.int32),
    )

    def layer(x, chosen, weights, gate, up, down, q, k, segments):
        mixed, _ = segment_attention(q, k, k, segments, scale=0.1)
        return experts(x + mixed.reshape(*x.shape[:2], -1)[..., :1], chosen, weights, gate, up, down)

    run = placement.on(mesh, exchange=placement.Exchange("fetch"))(layer)
    with tiles.compiling_for("v5p"), tpu_compiler.uncached():
        traced = jax.jit(run, compiler_options=compiler_options(mesh)).trace(*shapes)
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    module = hlo.read(text)
    assert "all-to-all(" not in text
    assert not [
        i
        for c in module.computations.values()
        for i in c.instructions
        if i.opcode == "all-reduce" and "bf16" in i.shape
    ]
    kinds = [
        {i.opcode for i in c.instructions if i.opcode == "all-gather" or '"tpu_custom_call"' in i.attributes}
        for c in module.computations.values()
        if c is not module.entry
    ]
    assert {"all-gather", "custom-call"} in kinds


@pytest.mark.parametrize("program", ["prefill", "decode"])
def test_what_samples_leaves_the_sparse_cores_of_tpu7x_alone(arch, program):
    """Their programs take the compiler longer than all the rest at full size."""
    arch = dataclasses.replace(arch, hidden=1024, vocab=4096, expert_ffn=512, experts=8)
    mesh = meshes.make_mesh(fsdp=4, expert=2, devices=tpu_compiler.devices("tpu7x:2x2x1"))
    limits = Limits(slots=64, max_prompt=128, max_response=128, decode_chunk=4, prefill_batch=64, stop_tokens=(0,))
    engine = Engine(arch, limits, compute_dtype="bfloat16", mesh=mesh)
    _, weights = abstract(lambda: Decoder(arch, rngs=nnx.Rngs(0)), mesh)
    run, arguments = engine.programs(weights, mesh)[program]
    with tiles.compiling_for("tpu7x"), tpu_compiler.uncached():
        text = run.trace(*arguments).lower(lowering_platforms=("tpu",)).compile().as_text()
    assert "all-gather" in text
    assert "sparsecore" not in text
