"""CISPO against the published equation through torch's autograd, and its own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.objectives.advantages import group_advantages
from posttrain_jax.objectives.cispo import cispo


@pytest.fixture
def batch():
    """Four responses of ragged length, drifted far enough from the sampler that weights are clipped on both sides."""
    rng = np.random.default_rng(0)
    old = -rng.exponential(1.0, (4, 12)).astype(np.float32)
    new = old + rng.normal(0.0, 1.5, old.shape).astype(np.float32)
    mask = (np.arange(12) < np.array([12, 5, 1, 9])[:, None]).astype(np.float32)
    advantages = np.broadcast_to(rng.normal(size=(4, 1)), old.shape).astype(np.float32)
    return {"logprobs": new, "old_logprobs": old, "advantages": advantages, "mask": mask}


def value_and_gradient(batch, **options):
    rest = {name: array for name, array in batch.items() if name != "logprobs"}
    both = jax.value_and_grad(lambda logprobs: cispo(logprobs, **rest, **options), has_aux=True)
    (loss, metrics), gradient = both(batch["logprobs"])
    return float(loss), np.asarray(gradient), metrics


def published(batch, low, high):
    """-J of equation 4 with the weight of equation 5, in float64; ``low`` and ``high`` are the paper's epsilons."""
    torch = pytest.importorskip("torch", reason="the oracle is torch's autograd")
    new, old, advantages, mask = (torch.tensor(batch[name], dtype=torch.float64) for name in batch)
    new.requires_grad_(True)
    objective, tokens = 0.0, 0
    for i in range(len(new)):
        for t in range(new.shape[1]):
            if mask[i, t]:
                ratio = torch.exp(new[i, t] - old[i, t])
                weight = torch.clip(ratio, 1 - low, 1 + high).detach()
                objective = objective + weight * advantages[i, t] * new[i, t]
                tokens += 1
    loss = -objective / tokens
    loss.backward()
    return loss.item(), new.grad.numpy()


@pytest.mark.parametrize("low, high", [(1.0, 4.0), (1.0, 0.2), (0.2, 0.28)])
def test_it_is_the_published_equation(batch, low, high):
    expected, expected_gradient = published(batch, low, high)
    loss, gradient, _ = value_and_gradient(batch, min_ratio=1 - low, max_ratio=1 + high)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-8)


def test_a_clipped_token_keeps_its_gradient_with_the_cap_as_weight(batch):
    _, gradient, metrics = value_and_gradient(batch, max_ratio=1.5)
    ratio, mask = np.exp(batch["logprobs"] - batch["old_logprobs"]), batch["mask"]
    clipped = (ratio > 1.5) & (mask > 0)
    assert clipped.sum() >= 5 and (batch["advantages"][clipped] > 0).any() and (batch["advantages"][clipped] < 0).any()
    np.testing.assert_allclose(gradient[clipped], -1.5 * batch["advantages"][clipped] / mask.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["clipped"], clipped.sum() / mask.sum(), rtol=1e-6)


def test_no_gradient_reaches_the_weight_or_a_masked_token(batch):
    """d loss / d log π = -w·Â/N exactly: a gradient through w would add a second term."""
    _, gradient, _ = value_and_gradient(batch, max_ratio=np.inf)
    ratio = np.exp(batch["logprobs"] - batch["old_logprobs"])
    expected = -ratio * batch["advantages"] * batch["mask"] / batch["mask"].sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert not gradient[batch["mask"] == 0].any()


def test_on_policy_it_is_reinforce(batch):
    on_policy = {**batch, "old_logprobs": batch["logprobs"]}
    loss, gradient, metrics = value_and_gradient(on_policy)
    weight = batch["advantages"] * batch["mask"] / batch["mask"].sum()
    np.testing.assert_allclose(loss, -(weight * batch["logprobs"]).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, -weight, rtol=1e-6)
    assert metrics["kl"] == 0 and metrics["clipped"] == 0 and metrics["ratio"] == 1


def test_metrics_are_token_means(batch):
    _, _, metrics = value_and_gradient(batch, max_ratio=2.0, min_ratio=0.5)
    log_ratio = (batch["logprobs"] - batch["old_logprobs"])[batch["mask"] > 0].astype(np.float64)
    ratio = np.exp(log_ratio)
    np.testing.assert_allclose(metrics["kl"], (ratio - 1 - log_ratio).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["clipped"], ((ratio > 2) | (ratio < 0.5)).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["ratio"], ratio.mean(), rtol=1e-5)


def test_cut_into_microbatches_it_adds_up_to_the_whole(batch):
    total = batch["mask"].sum()
    whole, gradient, metrics = value_and_gradient(batch)
    cuts = [{name: array[rows] for name, array in batch.items()} for rows in (slice(0, 1), slice(1, 4))]
    parts = [value_and_gradient(cut, total=total) for cut in cuts]
    np.testing.assert_allclose(sum(part[0] for part in parts), whole, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), gradient, rtol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(sum(part[2][name] for part in parts), value, rtol=1e-6)


def test_what_lies_under_the_mask_never_matters(batch):
    spoiled = {**batch, "logprobs": np.where(batch["mask"] > 0, batch["logprobs"], -np.inf)}
    spoiled["old_logprobs"] = np.where(batch["mask"] > 0, batch["old_logprobs"], np.nan)
    loss, gradient, metrics = value_and_gradient(spoiled)
    expected, expected_gradient, expected_metrics = value_and_gradient(batch)
    assert loss == expected and metrics == expected_metrics
    np.testing.assert_array_equal(gradient, expected_gradient)


def test_a_ratio_beyond_float32_and_an_empty_mask_stay_finite(batch):
    far = {**batch, "old_logprobs": batch["old_logprobs"] - 200}
    loss, gradient, _ = value_and_gradient(far, max_ratio=5.0)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    loss, gradient, metrics = value_and_gradient({**batch, "mask": np.zeros_like(batch["mask"])})
    assert loss == 0 and not gradient.any() and not any(jnp.isnan(value) for value in metrics.values())


def test_every_token_of_a_group_weighs_the_same_however_long_its_response():
    """Token-level normalisation: the loss divides by all tokens, not by each response's own."""
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]], np.float32)
    advantages = np.asarray(group_advantages(jnp.array([1.0, 0.0]), jnp.array([0, 0]), groups=1))
    batch = {"logprobs": np.full((2, 6), -1.0, np.float32), "old_logprobs": np.full((2, 6), -1.0, np.float32)}
    batch |= {"advantages": np.broadcast_to(advantages[:, None], (2, 6)), "mask": mask}
    _, gradient, _ = value_and_gradient(batch)
    np.testing.assert_allclose(np.abs(gradient[mask > 0]), 1 / 8, rtol=1e-5)
