"""Muon against torch.optim.Muon and a NumPy transcription; which weights it takes; how it lies on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from posttrain_jax.models.decoder import Decoder, abstract, materialise
from posttrain_jax.optim.adamw import adamw
from posttrain_jax.optim.masters import with_masters
from posttrain_jax.optim.muon import muon
from posttrain_jax.optim.names import is_hidden_matrix, names
from posttrain_jax.optim.newton_schulz import orthogonalise
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.stages.step import fresh_state, layout


def run(optimizer, params, gradients):
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    for gradient in gradients:
        changes, state = update(gradient, state, params)
        params = optax.apply_updates(params, changes)
    return params


def draws(shapes, count, seed=0):
    rng = np.random.default_rng(seed)
    return [{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)]


@pytest.mark.parametrize("nesterov", [True, False])
def test_it_is_torchs_muon(nesterov, monkeypatch):
    """A hundred steps. torch iterates in bfloat16, from which it is kept here: that is rounding, not the algorithm."""
    torch = pytest.importorskip("torch", reason="the oracle is torch.optim.Muon")
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    shapes = {"wide": (6, 14), "tall": (14, 6), "square": (8, 8)}
    (params, *gradients) = draws(shapes, 101)
    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in params.items()}
    reference = torch.optim.Muon(
        theirs.values(), lr=1e-2, weight_decay=0.1, momentum=0.95, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients:
        for name, array in gradient.items():
            theirs[name].grad = torch.tensor(array)
        reference.step()
    found = run(muon(1e-2, nesterov=nesterov, clip_norm=0.0), params, gradients)
    for name, expected in theirs.items():
        moved = expected.detach().numpy() - params[name]
        np.testing.assert_allclose(found[name] - params[name], moved, atol=1e-4 * abs(moved).max())


def test_every_matrix_of_a_stack_is_moved_by_itself():
    """Layers of experts, against Moonlight's equations for one matrix after the other."""
    (params, *gradients) = draws({"experts": (2, 3, 4, 6)}, 5)
    weight, momentum = params["experts"].astype(np.float64), np.zeros((2, 3, 4, 6))
    for gradient in gradients:
        momentum = 0.95 * momentum + gradient["experts"]
        ahead = np.asarray(orthogonalise((0.95 * momentum + gradient["experts"]).astype(np.float32)))
        weight = weight - 1e-2 * (0.2 * np.sqrt(6) * ahead + 0.1 * weight)
    found = run(muon(1e-2, clip_norm=0.0), params, gradients)
    np.testing.assert_allclose(found["experts"], weight, atol=1e-5)


def test_an_update_has_the_size_of_adamws():
    (params, gradient) = draws({"w": (2, 64, 96)}, 2)
    changes, _ = muon(1.0, weight_decay=0.0).update(gradient, muon(1.0).init(params), params)
    assert float(jnp.sqrt(jnp.square(changes["w"]).mean())) == pytest.approx(0.2, rel=0.15)


def test_embedding_head_norms_and_biases_are_adamws(model):
    _, weights = nnx.split(model)
    gradient = jax.tree.map(lambda w: jnp.ones(w.shape), weights)
    ours, theirs = (jax.jit(o.update)(gradient, o.init(weights), weights)[0] for o in (muon(1e-2), adamw(1e-2)))
    for (path, a), (_, b) in zip(*(jax.tree_util.tree_flatten_with_path(t)[0] for t in (ours, theirs)), strict=True):
        name, same = names(path), bool(np.allclose(a, b, rtol=1e-6))
        assert same != is_hidden_matrix(path, a), name
        assert same == bool({"embed", "head"} & set(name) or any("norm" in n or "bias" in n for n in name)), name


def test_on_a_mesh_it_is_the_same(arch):
    """Weights and moments split over eight devices, matrices dealt out: the steps of one device, to rounding."""
    make = lambda: Decoder(arch, rngs=nnx.Rngs(0))  # noqa: E731
    found = []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(data=1, fsdp=2, expert=2, tensor=2)):
        _, shapes = abstract(make, mesh)
        weights = materialise(make, shapes)
        optimizer = muon(1e-2, shardings=layout(shapes))
        state = fresh_state(weights, optimizer, mesh)

        @jax.jit
        def step(state, optimizer=optimizer):
            gradient = jax.tree.map(lambda w: jnp.sin(7 * w), state.weights)
            changes, moments = optimizer.update(gradient, state.optimizer, state.weights)
            return optax.apply_updates(state.weights, changes), moments

        weights, moments = step(state)
        pairs = zip(*map(jax.tree.leaves, (moments, state.optimizer)), strict=True)
        assert all(a.sharding == b.sharding for a, b in pairs)
        found.append(jax.tree.leaves(weights))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e18])
def test_no_gradient_is_too_small_or_too_large(scale):
    (params, *gradients) = draws({"w": (4, 6), "embed": (5, 4)}, 4)
    gradients = [jax.tree.map(lambda g: scale * g, gradient) for gradient in gradients]
    found = run(muon(1e-2, weight_decay=0.0), params, gradients)
    assert all(np.isfinite(array).all() for array in found.values())
    assert np.array_equal(found["w"], params["w"]) == (scale == 0.0)


def test_momentum_in_bfloat16_stays_near():
    (params, *gradients) = draws({"w": (8, 16)}, 11)
    exact, short = (run(muon(1e-2, momentum_dtype=dtype), params, gradients) for dtype in (None, "bfloat16"))
    kept = optax.tree.get(muon(1e-2, momentum_dtype="bfloat16").init(params), "momentum")
    assert kept["w"].dtype == jnp.bfloat16
    moved = np.abs(exact["w"] - params["w"]).max()
    np.testing.assert_allclose(short["w"], exact["w"], atol=0.2 * moved)


@pytest.mark.parametrize("optimizer", [adamw(1e-4), muon(1e-3)], ids=["adamw", "muon"])
def test_masters_move_where_bfloat16_cannot(optimizer):
    """The weights are at each step the float32 run's, rounded; without masters they never leave their place."""
    (params, *gradients) = draws({"w": (8, 16)}, 21)
    brief = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree)  # noqa: E731
    long = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), brief(tree))  # noqa: E731
    short, gradients = brief(params), [gradients[0]] * 20
    exact = run(optimizer, long(params), [long(g) for g in gradients])
    kept = run(with_masters(optimizer), short, [brief(g) for g in gradients])
    np.testing.assert_array_equal(kept["w"], exact["w"].astype(jnp.bfloat16))
    assert kept["w"].dtype == jnp.bfloat16 and (kept["w"] != short["w"]).mean() > 0.3


def test_weights_that_are_float32_already_have_no_copy():
    params = {"w": jnp.ones((2, 3)), "v": jnp.ones((2, 3), jnp.bfloat16)}
    optimizer = with_masters(adamw(1e-2))
    state = optimizer.init(params)
    assert len(jax.tree.leaves(state.copies)) == 1
    changes, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, {**params, "w": 3 * params["w"]})
    assert float(changes["w"][0, 0]) == pytest.approx(-1e-2 * (1 + 0.1 * 3), rel=1e-3)


def test_optimizers_are_called_by_the_names_of_their_room():
    import posttrain_jax.optim

    weights = {"w": jnp.ones((2, 3))}
    for make in (posttrain_jax.optim.adamw, posttrain_jax.optim.muon):
        assert make(1e-3).init(weights) is not None
    assert posttrain_jax.optim.muonclip(1e-3, 50.0, columns={}).init(weights) is not None
