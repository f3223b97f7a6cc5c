"""The mixture of experts against NumPy, token by token, forward and backward, on both of its paths."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import expert_ffn
from pallas_kernels.expert_ffn import sort_by_expert
from posttrain_jax.models.moe import MixtureOfExperts, route

PATHS = {name: partial(expert_ffn, backend=name) for name in ("definition", "xla")}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(tokens, router, bias, gate, up, down, top_k):
    """Each token walked to its experts alone, in float64."""
    tokens, router, bias, gate, up, down = (np.asarray(x, np.float64) for x in (tokens, router, bias, gate, up, down))
    out = np.zeros_like(tokens)
    for t, x in enumerate(tokens):
        scores = sigmoid(x @ router)
        chosen = np.argsort(-(scores + bias), kind="stable")[:top_k]
        for e in chosen:
            inner = x @ gate[e]
            out[t] += scores[e] / scores[chosen].sum() * ((inner * sigmoid(inner) * (x @ up[e])) @ down[e])
    return out


def weights_of(arch, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(arch.hidden, arch.experts), (arch.experts,)]
    shapes += [(arch.experts, arch.hidden, arch.expert_ffn)] * 2 + [(arch.experts, arch.expert_ffn, arch.hidden)]
    arrays = [rng.normal(size=shape) * (shape[-2] if len(shape) > 1 else 9) ** -0.5 for shape in shapes]
    return [array.astype(np.float32) for array in arrays]


def layer(arch, router, bias, gate, up, down):
    block = MixtureOfExperts(arch, rngs=nnx.Rngs(0), dtype=jnp.float32)
    nnx.update(block, {"router": router, "bias": bias, "gate": gate, "up": up, "down": down})
    return block


def random_tokens(arch, count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, arch.hidden)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 5, 128, 129, 300])
def test_forward(arch, count):
    """Up to 128 tokens meet every expert, more are sorted: both are the same sum."""
    weights, tokens = weights_of(arch), random_tokens(arch, count)
    found = nnx.jit(lambda block, x: block(x)[0])(layer(arch, *weights), tokens[None])[0]
    np.testing.assert_allclose(found, by_hand(tokens, *weights, arch.experts_per_token), atol=2e-6)


@pytest.mark.parametrize("top_k", [1, 2, 6])
def test_any_number_of_experts_a_token(arch, top_k):
    arch = dataclasses.replace(arch, experts_per_token=top_k)
    weights, tokens = weights_of(arch), random_tokens(arch, 150)
    found = nnx.jit(lambda block, x: block(x)[0])(layer(arch, *weights), tokens[None])[0]
    np.testing.assert_allclose(found, by_hand(tokens, *weights, top_k), atol=2e-6)


def both_ways(tokens, router, bias, gate, up, down, top_k, path):
    chosen, shares, _ = route(tokens @ router, bias, top_k)
    return path(tokens, chosen, shares, gate, up, down)


@pytest.mark.parametrize("path", PATHS)
def test_gradient_by_finite_differences(arch, path):
    """Directional derivatives of every input, from the NumPy transcription in float64."""
    weights, tokens = weights_of(arch), random_tokens(arch, 40)
    rng = np.random.default_rng(2)
    cotangent = rng.normal(size=tokens.shape).astype(np.float32)
    loss = lambda *inputs: (both_ways(*inputs, arch.experts_per_token, PATHS[path]) * cotangent).sum()  # noqa: E731
    gradients = jax.jit(jax.grad(loss, argnums=tuple(range(6))))(tokens, *weights)
    inputs = [np.asarray(x, np.float64) for x in (tokens, *weights)]
    for i, gradient in enumerate(gradients):
        if i == 2:
            continue
        direction = rng.normal(size=inputs[i].shape)
        at = lambda h: by_hand(*inputs[:i], inputs[i] + h * direction, *inputs[i + 1 :], arch.experts_per_token)  # noqa: E731, B023
        expected = ((at(1e-6) - at(-1e-6)) * cotangent).sum() / 2e-6
        assert (np.asarray(gradient) * direction).sum() == pytest.approx(expected, rel=1e-3, abs=1e-3), i


@pytest.mark.parametrize("count", [7, 100])
def test_the_two_paths_are_one_function(arch, count):
    weights, tokens = weights_of(arch), random_tokens(arch, count)

    def run(path):
        loss = lambda *inputs: jnp.square(both_ways(*inputs, arch.experts_per_token, PATHS[path])).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(6))))(tokens, *weights)

    for a, b in zip(jax.tree.leaves(run("definition")), jax.tree.leaves(run("xla")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.abs(a).max(), 1e-6))


@pytest.mark.parametrize("count", [40, 200])
def test_dropless_when_all_tokens_want_one_expert(arch, count):
    """Expert 4 takes every token, 2 of the 6 experts none: no token is lost to a capacity, no empty expert matters."""
    arch = dataclasses.replace(arch, experts_per_token=1)
    router, bias, *experts = weights_of(arch)
    bias = np.array([0, 0, 0, 0, 9, 0], np.float32)
    tokens = random_tokens(arch, count)
    found, gradient = nnx.jit(nnx.value_and_grad(lambda block, x: (block(x)[0] ** 2).sum()))(
        layer(arch, router, bias, *experts), tokens[None]
    )
    expected = by_hand(tokens, router, bias, *experts, 1)
    np.testing.assert_allclose(found, (expected**2).sum(), rtol=1e-5)
    of_expert = np.abs(gradient["gate"][...]).max(axis=(1, 2))
    assert of_expert[4] > 0 and not np.delete(of_expert, 4).any()


def test_the_bias_steers_the_choice_and_nothing_else():
    logits = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    bias = np.array([5, 0, 0, 0, 0, 0, 0, -5], np.float32)
    chosen, shares, _ = route(logits, bias, 3)
    assert (np.asarray(chosen) == 0).any(axis=1).all() and not (np.asarray(chosen) == 7).any()
    scores = np.take_along_axis(sigmoid(logits), np.asarray(chosen), axis=1)
    np.testing.assert_allclose(shares, scores / scores.sum(axis=1, keepdims=True), rtol=1e-5)
    assert not np.array_equal(np.sort(chosen, axis=1), np.sort(route(logits, 0 * bias, 3)[0], axis=1))
    np.testing.assert_array_equal(route(logits, bias + 3, 3)[1], shares)


def test_the_bias_gets_no_gradient_and_the_router_does(arch):
    weights, tokens = weights_of(arch), random_tokens(arch, 140)
    gradient = nnx.jit(nnx.grad(lambda block, x: (block(x)[0] ** 2).sum()))(layer(arch, *weights), tokens[None])
    assert not np.any(gradient["bias"][...]) and np.abs(gradient["router"][...]).max() > 1e-3


def test_shares_stay_finite_when_every_score_vanishes():
    chosen, shares, _ = route(jnp.full((2, 4), -200.0), jnp.zeros(4), 2)
    assert np.isfinite(shares).all() and np.asarray(chosen).shape == (2, 2)


@pytest.mark.parametrize("block", [1, 8, 32])
def test_sorting_is_a_permutation_in_whole_blocks(block):
    chosen = np.random.default_rng(3).choice([0, 1, 3, 4], size=(45, 2)).astype(np.int32)
    slot_of_row, row_of_slot, sizes = map(np.asarray, sort_by_expert(jnp.asarray(chosen), 6, block))
    flat, slots = chosen.reshape(-1), chosen.size
    np.testing.assert_array_equal(slot_of_row[row_of_slot.reshape(-1)], np.arange(slots))
    assert (np.sort(slot_of_row)[:slots] == np.arange(slots)).all() and (np.sort(slot_of_row)[slots:] == slots).all()
    assert (sizes % block == 0).all() and sizes.sum() <= len(slot_of_row) and len(slot_of_row) % block == 0
    np.testing.assert_array_equal(sizes, -(-np.bincount(flat, minlength=6) // block) * block)
    expert_of_row = np.repeat(np.arange(6), sizes)
    held = slot_of_row[: len(expert_of_row)]
    np.testing.assert_array_equal(expert_of_row[held < slots], flat[held[held < slots]])
