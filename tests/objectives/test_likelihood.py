"""The supervised loss against torch's cross-entropy."""

import jax
import numpy as np
import pytest

from pallas_kernels import token_logprobs
from posttrain_jax.objectives.likelihood import negative_log_likelihood


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(3, 10, 8)).astype(np.float32), rng.normal(size=(8, 20)).astype(np.float32)
    targets = rng.integers(0, 20, (3, 10))
    mask = (np.arange(10) < np.array([10, 4, 7])[:, None]).astype(np.float32)
    return hidden, head, targets, mask


def test_it_is_the_mean_cross_entropy_of_the_trained_tokens(batch):
    torch = pytest.importorskip("torch", reason="the oracle is torch's cross-entropy")
    hidden, head, targets, mask = batch

    def loss(hidden, head):
        return negative_log_likelihood(token_logprobs(hidden, head, targets)[0], mask, total=mask.sum())

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(hidden, head)
    inputs = [torch.tensor(array, requires_grad=True) for array in (hidden, head)]
    ignored = torch.where(torch.tensor(mask) > 0, torch.tensor(targets), -100)
    expected = torch.nn.functional.cross_entropy((inputs[0] @ inputs[1]).flatten(0, 1), ignored.flatten())
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    for ours, theirs in zip(gradients, inputs, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_rows_apart_add_up_to_rows_together(batch):
    hidden, head, targets, mask = batch
    logprobs = token_logprobs(hidden, head, targets)[0]
    whole = negative_log_likelihood(logprobs, mask, total=mask.sum())
    parts = [negative_log_likelihood(logprobs[i], mask[i], total=mask.sum()) for i in range(3)]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)
