"""The loss and every gradient of all four families, on meshes of every axis, as on one device."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.models import glm_4_6, kimi_k2, minimax_m1, minimax_m2
from posttrain_jax.models.decoder import abstract
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.parallel import placement
from posttrain_jax.parallel.logprobs import token_logprobs
from posttrain_jax.parallel.placement import Exchange

SMALL = dict(vocab=64, hidden=32, expert_ffn=16, experts=8, experts_per_token=2, heads=4)
FAMILIES = {
    "minimax_m2": dataclasses.replace(minimax_m2.TINY, layers=2, kv_heads=2, head_dim=16, rotary_dim=8, **SMALL),
    "glm_4_6": dataclasses.replace(
        glm_4_6.TINY, layers=2, dense_layers=1, dense_ffn=24, kv_heads=2, head_dim=16, rotary_dim=8, **SMALL
    ),
    "kimi_k2": dataclasses.replace(kimi_k2.TINY, layers=2, dense_layers=1, dense_ffn=24, **{**SMALL, "kv_heads": 4}),
    "minimax_m1": dataclasses.replace(
        minimax_m1.TINY, layers=2, pattern=("lightning", "full"), kv_heads=2, head_dim=16, rotary_dim=8, **SMALL
    ),
}
RAGGED = Exchange("ragged", quota=0.5)  # rarely one round
MESHES = {
    "fsdp": (dict(data=1, fsdp=8), Exchange()),
    "expert": (dict(data=1, expert=8), RAGGED),
    "context": (dict(data=2, context=4), Exchange()),
    "tensor": (dict(data=4, tensor=2), Exchange()),
    "data fsdp expert": (dict(data=2, fsdp=2, expert=2), Exchange("gather")),
    "expert tensor context": (dict(data=1, expert=2, tensor=2, context=2), RAGGED),
    "fsdp expert": (dict(data=1, fsdp=2, expert=4), Exchange("ragged", quota=1.5)),
    "fsdp tensor context": (dict(data=1, fsdp=2, tensor=2, context=2), Exchange()),
}
ROWS, LENGTH = 8, 16


def rows(arch):
    """Packed rows of two sequences and padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, arch.vocab, (ROWS, LENGTH)).astype(np.int32)
    fill = partial(np.broadcast_to, shape=(ROWS, LENGTH))
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=-1),
        "positions": fill(np.concatenate([np.arange(n) for n in (9, 5, 2)])).astype(np.int32),
        "segment_ids": fill(np.repeat([1, 2, 0], [9, 5, 2])).astype(np.int32),
    }


def losses(model, mesh, exchange):
    """The loss, all gradients, and the peaks of attention."""
    graph, weights = nnx.split(model)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract(lambda: model, mesh)[1])

    def loss(weights, batch):
        model = nnx.merge(graph, weights)
        watch = lambda seen: seen.peaks  # noqa: E731
        trunk, peaks = model.watched_trunk(batch["tokens"], batch["positions"], batch["segment_ids"], watch)
        logprobs, _ = token_logprobs(model.normed(trunk), model.head[...], batch["targets"], temperature=0.9)
        return -(logprobs * (batch["segment_ids"] > 0)).mean(), [p for p in jax.tree.leaves(peaks) if p.size]

    run = placement.on(mesh, exchange=exchange)(jax.value_and_grad(loss, has_aux=True))
    out = jax.jit(run, out_shardings=(None, layout))
    return out(jax.device_put(weights, layout), meshes.put_batch(rows(model.arch), mesh))


@pytest.fixture(scope="module")
def expected(make_model):
    found = {}

    def of(family):
        if family not in found:
            model = make_model(FAMILIES[family])
            found[family] = model, losses(model, meshes.make_mesh(devices=jax.devices()[:1]), Exchange())
        return found[family]

    return of


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients(expected, family, name):
    model, ((value, peaks), grads) = expected(family)
    axes, exchange = MESHES[name]
    (found, found_peaks), found_grads = losses(model, meshes.make_mesh(**axes), exchange)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    for a, b in zip(found_peaks, peaks, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)

    def alike(path, got, want):
        got, want = np.asarray(got), np.asarray(want)
        np.testing.assert_allclose(got, want, atol=1e-5 * max(np.abs(want).max(), 1e-6), err_msg=str(path))

    jax.tree_util.tree_map_with_path(alike, found_grads, grads)
