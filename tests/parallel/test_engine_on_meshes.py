"""The engine on a mesh: the same tokens, from weights laid for decoding."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.models import glm_4_6, kimi_k2, minimax_m1
from posttrain_jax.models.decoder import abstract
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine

SMALL = dict(layers=2, vocab=64, hidden=32, expert_ffn=16, experts=8, experts_per_token=2, heads=4, max_length=64)
CASES = {
    "minimax_m1": (
        dataclasses.replace(
            minimax_m1.TINY, pattern=("lightning", "full"), kv_heads=2, head_dim=16, rotary_dim=8, **SMALL
        ),
        dict(data=2, expert=2, tensor=2),
    ),
    "kimi_k2": (
        dataclasses.replace(kimi_k2.TINY, dense_layers=1, dense_ffn=24, kv_heads=4, **SMALL),
        dict(data=1, fsdp=2, expert=2, tensor=2),
    ),
    "glm_4_6": (
        dataclasses.replace(
            glm_4_6.TINY, dense_layers=1, dense_ffn=24, kv_heads=2, head_dim=16, rotary_dim=8, mtp_layers=0, **SMALL
        ),
        dict(data=1, fsdp=4, context=2),
    ),
}
LIMITS = Limits(slots=8, max_prompt=8, max_response=8, decode_chunk=4, prefill_batch=2, stop_tokens=(3,))


@pytest.mark.parametrize("name", CASES)
def test_a_mesh_generates_the_same(make_model, name):
    arch, axes = CASES[name]
    model, mesh = make_model(arch), meshes.make_mesh(**axes)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract(lambda: model, mesh)[1])
    prompts = [np.random.default_rng(i).integers(4, arch.vocab, 3 + i % 5).tolist() for i in range(10)]
    told = []
    for engine, weights in (
        (Engine(arch, LIMITS), nnx.state(model)),
        (Engine(arch, LIMITS, mesh=mesh), jax.device_put(nnx.state(model), layout)),
    ):
        loaded = engine.load(weights)
        told.append(engine.generate(loaded, prompts, jax.random.key(0), temperature=0.0))
    gate = loaded["layers"][1]["ffn"]["gate"][...]
    assert gate.addressable_shards[0].data.shape[0] == 8 * axes.get("tensor", 1) // 8
    for (one,), (other,) in zip(*told, strict=True):
        np.testing.assert_array_equal(other.tokens, one.tokens)
        np.testing.assert_allclose(other.logprobs, one.logprobs, atol=1e-4)
