"""Routers in training: frozen, balanced by a loss, steered by their biases; the same however a batch is cut."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from posttrain_jax.models import glm_4_6
from posttrain_jax.models.decoder import Decoder, abstract
from posttrain_jax.models.moe import route
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.run.recipe import Pace, Router
from posttrain_jax.stages.observing import Watch, is_router, steer
from posttrain_jax.stages.optimizing import make_optimizing
from posttrain_jax.stages.sft import make_loss
from posttrain_jax.stages.step import fresh_state, make_update

ARCH = dataclasses.replace(
    glm_4_6.TINY, layers=4, dense_layers=1, vocab=64, hidden=32, expert_ffn=16, experts=4, dense_ffn=24, mtp_layers=0
)
MESH = make_mesh(devices=jax.local_devices()[:1])


@pytest.fixture(scope="module")
def split():
    return nnx.split(Decoder(ARCH, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def batch():
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, ARCH.vocab, (4, 25))
    segments = np.repeat(np.array([[1, 2, 0]]), [9, 12, 3], axis=1).repeat(4, axis=0)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments,
        "positions": np.tile(np.r_[np.arange(9), np.arange(12), np.arange(3)], (4, 1)),
        "mask": (segments > 0).astype(np.float32),
    }


def updated(split, batch, router, microbatches=1, optimizer=None):
    graph, weights = split
    chosen = optimizer or make_optimizing(Pace(warmup_steps=0, weight_decay=0.1), 10, ARCH, router=router).optimizer
    state = fresh_state(jax.tree.map(jnp.copy, weights), chosen, MESH)
    update = make_update(chosen, make_loss(graph, 0.0, Watch(router)), state, partial(steer, settings=router))
    cut = {name: x.reshape(microbatches, -1, x.shape[1]) for name, x in batch.items()}
    return update(state, cut, microbatches)


def changed(before, after):
    """Paths of the weights that an update moved."""
    pairs = zip(before.flat_state(), after.flat_state(), strict=True)
    return {path for (path, a), (_, b) in pairs if not np.array_equal(a.get_value(), b.get_value())}


def test_a_frozen_router_stays_and_all_else_moves(split, batch):
    state, _ = updated(split, batch, Router(freeze=True))
    paths = {path for path, _ in split[1].flat_state()}
    routers = {path for path in paths if path[-1] == "router" or path[-2:] == ("ffn", "bias")}
    assert len(routers) == 2 and changed(split[1], state.weights) == paths - routers
    assert {path for path in paths if is_router(path)} == routers
    state, _ = updated(split, batch, Router())
    assert changed(split[1], state.weights) >= {path for path in routers if path[-1] == "router"}


def loads_by_hand(split, batch):
    """Tokens of each expert of each layer, from a decoder whose layers stand one by one."""
    graph, weights = split
    model = nnx.merge(graph, weights)
    where = (batch[name] for name in ("tokens", "positions", "segment_ids"))
    _, stacks = model.watched_trunk(*where, lambda seen: seen.routing and seen.routing.chosen)
    valid = batch["segment_ids"].reshape(-1) > 0
    loads = []
    for stack in stacks:
        for layers in stack:
            for chosen in [] if layers is None else np.asarray(layers):
                picked = chosen.reshape(-1, ARCH.experts_per_token)[valid]
                loads.append([(picked == expert).sum() for expert in range(ARCH.experts)])
    return np.array(loads)


@pytest.mark.parametrize("microbatches", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_biases_take_one_step_by_the_load_of_the_whole_batch(split, batch, microbatches):
    loads = loads_by_hand(split, batch)
    assert loads.shape == (3, 4) and loads.sum() == 3 * 84 * ARCH.experts_per_token
    state, metrics = updated(split, batch, Router(bias_rate=0.01), microbatches)
    bias = np.asarray(state.weights["stacks"][1][0]["ffn"]["bias"].get_value())
    np.testing.assert_allclose(bias, 0.01 * np.sign(loads.mean(axis=1, keepdims=True) - loads), atol=1e-8)
    assert float(metrics["imbalance"]) == pytest.approx((loads.max(1) / loads.mean(1) - 1).mean(), rel=1e-5)
    assert "expert_load" not in metrics


@pytest.mark.parametrize("microbatches", [1, 4])
def test_the_balance_loss_adds_to_the_loss_and_moves_routers(split, batch, microbatches):
    still = optax.identity()
    _, plain = updated(split, batch, Router(), microbatches, still)
    _, both = updated(split, batch, Router(balance_weight=0.5), microbatches, still)
    assert float(both["loss"]) == pytest.approx(float(plain["loss"]) + 0.5 * float(both["balance_loss"]), rel=1e-5)
    assert 3 <= float(both["balance_loss"]) < 3 * ARCH.experts  # three layers, at least 1 each
    assert "balance_loss" not in plain


def test_training_with_the_loss_evens_the_load(split, batch):
    graph, weights = split
    skewed = jax.tree_util.tree_map_with_path(
        lambda path, x: x.at[..., 0].add(0.4) if is_router(path) and x.ndim == 3 else x, weights
    )
    ends = []
    for router in (Router(balance_weight=1e-9), Router(balance_weight=3.0)):
        optimizer = make_optimizing(Pace(learning_rate=3e-3, warmup_steps=0), 60, ARCH, router=router).optimizer
        state = fresh_state(jax.tree.map(jnp.copy, skewed), optimizer, MESH)
        update = make_update(
            optimizer, make_loss(graph, 0.0, Watch(router)), state, lambda *n, r=router: steer(*n, settings=r)
        )
        for _ in range(60):
            state, metrics = update(state, {name: x[None] for name, x in batch.items()}, 1)
        ends.append(float(metrics["imbalance"]))
    assert ends[1] < ends[0] - 0.05


@pytest.mark.slow
def test_on_a_mesh_the_same(split, batch):
    graph, weights = split
    router = Router(balance_weight=0.1, bias_rate=0.01)
    alone, _ = updated(split, batch, router)
    mesh = make_mesh(data=2, fsdp=2, expert=2)
    _, shapes = abstract(lambda: Decoder(ARCH, rngs=nnx.Rngs(0)), mesh)
    placed = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), weights, shapes)
    optimizer = make_optimizing(Pace(warmup_steps=0, weight_decay=0.1), 10, ARCH, router=router).optimizer
    state = fresh_state(placed, optimizer, mesh)
    update = make_update(optimizer, make_loss(graph, 0.0, Watch(router)), state, partial(steer, settings=router))
    state, _ = update(state, {name: x[None] for name, x in batch.items()}, 1)
    for (path, a), (_, b) in zip(alone.weights.flat_state(), state.weights.flat_state(), strict=True):
        if path[-1] == "bias":
            np.testing.assert_array_equal(np.asarray(a.get_value()), np.asarray(b.get_value()))


def test_route_gives_every_score():
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.testing.assert_allclose(route(logits, None, 2)[2], 1 / (1 + np.exp(-logits)), rtol=1e-5)
    np.testing.assert_allclose(route(logits, None, 2, scoring="softmax")[2], jax.nn.softmax(logits), rtol=1e-5)
