"""Token log-probabilities against a float64 softmax, and that cutting into chunks changes nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import token_logprobs


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, 11, 16)).astype(np.float32), rng.normal(size=(16, 40)).astype(np.float32)
    return hidden, head, rng.integers(0, 40, (2, 11))


def softmax(hidden, head, temperature):
    logits = hidden.astype(np.float64) @ head.astype(np.float64) / temperature
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 3.0])
@pytest.mark.parametrize("chunk", [8192, 22, 8, 1])
def test_values_and_entropy(batch, temperature, chunk):
    hidden, head, targets = batch
    logprobs, entropy = jax.jit(partial(token_logprobs, temperature=temperature, chunk=chunk))(*batch)
    probability = softmax(hidden, head, temperature)
    chosen = np.take_along_axis(probability, targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(logprobs, np.log(chosen), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy, -(probability * np.log(probability)).sum(axis=-1), rtol=1e-5, atol=1e-5)
    assert logprobs.dtype == entropy.dtype == jnp.float32


@pytest.mark.parametrize("chunk", [8192, 8])
def test_gradient_is_target_minus_softmax(batch, chunk):
    hidden, head, targets = batch
    weight = np.random.default_rng(1).normal(size=targets.shape).astype(np.float32)
    loss = lambda hidden, head: (weight * token_logprobs(hidden, head, targets, temperature=0.7, chunk=chunk)[0]).sum()  # noqa: E731
    d_hidden, d_head = jax.jit(jax.grad(loss, argnums=(0, 1)))(hidden, head)
    d_logits = weight[..., None] * (np.eye(40)[targets] - softmax(hidden, head, 0.7)) / 0.7
    np.testing.assert_allclose(d_hidden, d_logits @ head.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(d_head, np.einsum("blh,blv->hv", hidden, d_logits), rtol=1e-4, atol=1e-4)


def test_the_entropy_gives_no_gradient(batch):
    hidden, head, targets = batch
    gradient = jax.grad(lambda hidden: token_logprobs(hidden, head, targets)[1].sum())(hidden)
    assert not np.any(gradient)


def test_large_logits_do_not_overflow(batch):
    hidden, head, targets = batch
    logprobs, entropy = token_logprobs(1e4 * hidden, head, targets)
    assert np.isfinite(logprobs).all() and (logprobs <= 0).all()
    assert np.isfinite(entropy).all() and (entropy >= 0).all()


def test_bfloat16_hidden_states_meet_the_head_in_float32(batch):
    hidden, head, targets = batch
    half = jnp.asarray(hidden, jnp.bfloat16)
    logprobs, _ = token_logprobs(half, head, targets)
    expected = softmax(np.asarray(half, np.float32), head, 1.0)
    chosen = np.take_along_axis(expected, targets[..., None], axis=-1)[..., 0]
    assert logprobs.dtype == jnp.float32
    np.testing.assert_allclose(logprobs, np.log(chosen), atol=1e-5)


def test_the_whole_logits_never_exist_when_cut(batch):
    """No array of the compiled program has all positions by all of the vocabulary, forward or backward."""
    hidden, head, targets = jnp.zeros((4, 64, 16)), jnp.zeros((16, 1000)), jnp.zeros((4, 64), jnp.int32)
    grad = jax.grad(lambda hidden, head: token_logprobs(hidden, head, targets, chunk=32)[0].sum(), argnums=(0, 1))
    program = str(jax.make_jaxpr(grad)(hidden, head))
    assert "[4,8,1000]" in program and "64,1000]" not in program and "256,1000]" not in program
    assert "[8,4,8,1000]" not in program, "no piece's logits are kept for the backward pass"


@pytest.mark.parametrize("chunk", [None, 8])
def test_a_temperature_for_each_token(batch, chunk):
    hidden, head, targets = batch
    heat = np.random.default_rng(3).uniform(0.5, 2.0, targets.shape).astype(np.float32)
    found, entropy = token_logprobs(hidden, head, targets, temperature=heat, chunk=chunk)
    for b, t in np.ndindex(*targets.shape):
        one = token_logprobs(hidden[b : b + 1, t : t + 1], head, targets[b : b + 1, t : t + 1], temperature=heat[b, t])
        np.testing.assert_allclose((found[b, t], entropy[b, t]), (one[0][0, 0], one[1][0, 0]), rtol=1e-5, atol=1e-6)


def test_a_vocabulary_split_over_devices():
    draw = np.random.default_rng(7)
    hidden, head = draw.normal(size=(2, 5, 8)).astype(np.float32), draw.normal(size=(8, 24)).astype(np.float32)
    targets, gradient = draw.integers(0, 24, (2, 5)), draw.normal(size=(2, 5)).astype(np.float32)
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def both(hidden, head, targets, axis_name=None):
        run = lambda *x: token_logprobs(*x, targets, temperature=0.7, axis_name=axis_name)  # noqa: E731
        found, back = jax.vjp(run, hidden, head)
        return found, back((gradient, jnp.zeros_like(gradient)))

    whole = spec()
    parts = jax.shard_map(
        lambda *x: both(*x, axis_name="tensor"),
        mesh=mesh,
        in_specs=(whole, spec(None, "tensor"), whole),
        out_specs=((whole, whole), (whole, spec(None, "tensor"))),
        check_vma=False,
    )
    for a, b in zip(
        jax.tree.leaves(parts(hidden, head, targets)), jax.tree.leaves(both(hidden, head, targets)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-6)
