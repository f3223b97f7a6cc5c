"""AdamW against torch.optim.AdamW, and what is decayed and what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from posttrain_jax.models.decoder import Decoder
from posttrain_jax.optim.adamw import UNIT, adamw

STEPS = 100


def ours(params, gradients, optimizer):
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    for gradient in gradients:
        changes, state = update(gradient, state, params)
        params = optax.apply_updates(params, changes)
    return params


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-14, 1e-18])
def test_it_is_torchs_adamw(scale):
    """Down to gradients of 1e-18, where MiniMax-M1's still are: an epsilon of 1e-8 would freeze those weights."""
    torch = pytest.importorskip("torch", reason="the oracle is torch.optim.AdamW")
    rng = np.random.default_rng(0)
    params = {"matrix": rng.normal(size=(5, 7)), "norm": rng.normal(size=7)}
    gradients = [{name: scale * rng.normal(size=array.shape) for name, array in params.items()} for _ in range(STEPS)]
    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in params.items()}
    groups = [{"params": [theirs["matrix"]]}, {"params": [theirs["norm"]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.1)
    for gradient in gradients:
        for name, array in gradient.items():
            theirs[name].grad = torch.tensor(array)
        reference.step()

    single = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)  # noqa: E731
    found = ours(single(params), [single(gradient) for gradient in gradients], adamw(1e-2, clip_norm=0.0))
    for name, expected in theirs.items():
        moved = expected.detach().numpy() - params[name]
        np.testing.assert_allclose(found[name] - params[name], moved, atol=1e-4 * abs(moved).max() + 2e-6)


@pytest.mark.parametrize("scale", [1e-24, 1e-21, 3e-19, 1e-18, 1e-16, 1e-10, 1.0, 1e8])
def test_float32_does_what_float64_would(scale):
    """Updates of a hundred steps against the equations in float64, where the second moment is down to 1e-49."""
    rng = np.random.default_rng(1)
    gradients = scale * rng.normal(size=(100, 64))
    first = second = np.zeros(64)
    optimizer = adamw(1.0, weight_decay=0.0, clip_norm=0.0)
    update, params = jax.jit(optimizer.update), jnp.zeros(64)
    state = optimizer.init(params)
    for t, gradient in enumerate(gradients, 1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        expected = -(first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.95**t)) + 1e-15)
        found, state = update(jnp.asarray(gradient, jnp.float32), state, params)
        np.testing.assert_allclose(found, expected, atol=2e-5 * abs(expected).max())


def test_no_gradient_no_step():
    params = {"w": jnp.ones((2, 3))}
    after = ours(params, [{"w": jnp.zeros((2, 3))}] * 3, adamw(0.1, weight_decay=0.0))
    np.testing.assert_array_equal(after["w"], params["w"])


def test_the_gradient_is_clipped_by_its_global_norm():
    gradient = {"a": jnp.full((2, 2), 30.0), "b": jnp.full(4, -40.0)}
    params = jax.tree.map(jnp.zeros_like, gradient)
    _, state = adamw(1e-3, clip_norm=1.0).update(gradient, adamw(1e-3).init(params), params)
    mean = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.global_norm(mean) / UNIT, 0.1, rtol=1e-5)
    np.testing.assert_allclose(mean["b"] / mean["a"].reshape(-1), -4 / 3, rtol=1e-5)
    _, state = adamw(1e-3, clip_norm=1e3).update(gradient, adamw(1e-3).init(params), params)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["a"] / UNIT, 3.0, rtol=1e-6)


def test_matrices_decay_and_norms_and_biases_do_not(arch):
    """With no gradient nothing but decay moves a weight; stacked norms have two axes and still must not."""
    shapes = nnx.state(nnx.eval_shape(lambda: Decoder(arch, rngs=nnx.Rngs(0))))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    after = ours(params, [jax.tree.map(jnp.zeros_like, params)], adamw(0.1, weight_decay=0.5))
    ratios = jax.tree.map(lambda leaf: float(leaf.mean()), after)
    for path, ratio in jax.tree_util.tree_flatten_with_path(ratios)[0]:
        name = jax.tree_util.keystr(path)
        kept = "norm" in name or "bias" in name
        assert ratio == pytest.approx(1.0 if kept else 0.95, abs=1e-5), name
    assert sum("norm" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(ratios)[0]) == 5


def test_a_learning_rate_of_zero_changes_nothing():
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    gradient = {"w": jnp.ones((2, 3))}
    np.testing.assert_array_equal(ours(params, [gradient] * 2, adamw(0.0))["w"], params["w"])
