"""Routing replay: tokens sent where they were sent before, with the weights of the router as it is now."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.models import glm_4_6
from posttrain_jax.models.moe import route

SMALL = dict(vocab=64, hidden=32, expert_ffn=16, experts=8, experts_per_token=2, heads=4, max_length=64)
ARCH = dataclasses.replace(
    glm_4_6.TINY, layers=5, dense_layers=1, dense_ffn=24, kv_heads=2, head_dim=16, rotary_dim=8, mtp_layers=0, **SMALL
)


@pytest.fixture(scope="module", params=[True, False], ids=["scanned", "unscanned"])
def scan(request):
    return request.param


@pytest.fixture(scope="module")
def both(make_model, scan):
    """(model, tokens, its logits and its own routing)."""
    model = make_model(ARCH, scan=scan)
    tokens = np.random.default_rng(1).integers(0, 64, (2, 11))
    trunk, seen = nnx.jit(lambda m, t: m.watched_trunk(t, None, None, lambda s: s.routing and s.routing.chosen))(
        model, tokens
    )
    routing = np.full((2, 11, 5, 2), -1, np.int16)
    if scan:
        routing[:, :, 1:] = np.moveaxis(np.asarray(seen[1][0]), 0, 2)
    else:
        for layer, chosen in enumerate(seen[1:], 1):
            routing[:, :, layer] = chosen
    return model, tokens, trunk, routing


def trunk_of(model, tokens, routing):
    return nnx.jit(lambda m, t, r: m.trunk(t, None, None, r))(model, tokens, routing)


def test_replaying_one_s_own_choice_changes_nothing(both):
    model, tokens, trunk, routing = both
    np.testing.assert_array_equal(trunk_of(model, tokens, routing), trunk)
    np.testing.assert_array_equal(trunk_of(model, tokens, np.full_like(routing, -1)), trunk)


def test_another_choice_changes_only_what_comes_after(both):
    model, tokens, trunk, routing = both
    other = routing.copy()
    other[0, 6, 3] = (routing[0, 6, 3] + 1) % 8
    found = np.asarray(trunk_of(model, tokens, other))
    np.testing.assert_array_equal(found[1], trunk[1])
    np.testing.assert_array_equal(found[0, :6], trunk[0, :6])
    assert np.abs(found[0, 6] - trunk[0, 6]).max() > 1e-3


def test_weights_are_those_of_the_router_as_it_is():
    """And so its gradient is: the choice alone is replayed."""
    rng = np.random.default_rng(2)
    logits, replayed = rng.normal(size=(7, 8)).astype(np.float32), rng.permuted(np.tile(np.arange(8), (7, 1)), axis=1)
    replayed = replayed[:, :3].astype(np.int16)
    replayed[2] = -1
    chosen, weights, _ = route(logits, None, 3, scaling=2.5, replayed=replayed)
    own, own_weights, _ = route(logits, None, 3, scaling=2.5)
    kept = np.arange(7) != 2
    np.testing.assert_array_equal(np.asarray(chosen)[kept], replayed[kept])
    np.testing.assert_array_equal(chosen[2], own[2])
    np.testing.assert_array_equal(weights[2], own_weights[2])
    scores = 1 / (1 + np.exp(-np.take_along_axis(logits, np.asarray(chosen), axis=1)))
    np.testing.assert_allclose(weights, 2.5 * scores / scores.sum(axis=1, keepdims=True), rtol=1e-5)
    gradient = jax.grad(lambda x: route(x, None, 3, replayed=replayed)[1][:, 0].sum())(logits)
    touched = np.zeros((7, 8), bool)
    np.put_along_axis(touched, np.asarray(chosen), True, axis=1)
    assert (np.asarray(gradient) != 0)[touched].all() and not np.asarray(gradient)[~touched].any()


def test_what_is_computed_again_is_replayed_again(make_model):
    """Gradients through layers that the backward pass computes anew are those of layers whose values are kept."""
    arch, rng = dataclasses.replace(ARCH, layers=3), np.random.default_rng(3)
    tokens, routing = rng.integers(0, 64, (2, 11)), np.full((2, 11, 3, 2), -1, np.int16)
    routing[:, :7, 1:] = rng.permuted(np.tile(np.arange(8), (2, 7, 2, 1)), axis=-1)[..., :2]

    def gradient(remat):
        graph, weights = nnx.split(make_model(arch, remat=remat))
        return jax.jit(jax.grad(lambda w: nnx.merge(graph, w).trunk(tokens, None, None, routing).std()))(weights)

    for one, other in zip(jax.tree.leaves(gradient("none")), jax.tree.leaves(gradient("full")), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
