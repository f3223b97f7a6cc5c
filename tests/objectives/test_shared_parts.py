"""Aggregation, advantages, KL estimates, mismatch, critic and preferences against independent transcriptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain_jax.objectives.advantages import group_advantages, leave_one_out, rewards_to_go
from posttrain_jax.objectives.aggregation import token_weights
from posttrain_jax.objectives.kl import kl_estimate
from posttrain_jax.objectives.mismatch import kept_on_policy, truncated_importance
from posttrain_jax.objectives.preference import bradley_terry, dpo
from posttrain_jax.objectives.sequences import sequence_mean, sequence_sum
from posttrain_jax.objectives.value import clipped_value_loss, generalised_advantages

torch = pytest.importorskip("torch", reason="the oracle is torch")

LENGTHS = np.array([3, 1, 0, 7, 2, 4])  # the third place holds no response
PROMPTS = np.array([0, 0, 0, 1, 1, 3])


def averaged(values, mode, constant=10.0):
    """Each mode as its name says, by loops; ``values`` holds a list of numbers a response."""
    held = [(p, v) for p, v in zip(PROMPTS, values, strict=True) if len(v)]
    if mode == "token_mean":
        return np.concatenate([v for _, v in held]).mean()
    if mode == "sequence_mean":
        return np.mean([v.mean() for _, v in held])
    if mode == "sequence_sum":
        return np.mean([v.sum() / constant for _, v in held])
    return np.mean([np.concatenate([v for q, v in held if q == p]).mean() for p in sorted({p for p, _ in held})])


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "sequence_sum", "prompt_mean"])
def test_weights_average_as_their_name_says(mode):
    values = [np.random.default_rng(i).normal(size=n) for i, n in enumerate(LENGTHS)]
    weights = np.asarray(token_weights(LENGTHS, PROMPTS, mode, prompts=4, constant=10.0))
    found = sum((w * v).sum() for w, v in zip(weights, values, strict=True))
    assert found == pytest.approx(averaged(values, mode), rel=1e-5)
    assert weights[2] == 0
    if mode != "sequence_sum":
        assert (weights * LENGTHS).sum() == pytest.approx(1)


def test_an_unknown_aggregation_is_told():
    with pytest.raises(ValueError, match="no aggregation 'mean'; known: token_mean"):
        token_weights(LENGTHS, PROMPTS, "mean", prompts=4)


REWARDS = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(REWARDS, st.randoms(use_true_random=False))
def test_advantages_of_ragged_groups(rewards, dice):
    rewards = np.array(rewards, np.float32)
    ids = np.array([dice.randrange(3) for _ in rewards])
    centred = rewards - np.array([rewards[ids == g].mean(dtype=np.float64) for g in ids])
    np.testing.assert_allclose(group_advantages(rewards, ids, groups=3, scale="none"), centred, atol=1e-5)
    batch = group_advantages(rewards, ids, groups=3, scale="batch", epsilon=1e-2)
    np.testing.assert_allclose(batch, centred / (np.sqrt((centred**2).mean()) + 1e-2), atol=1e-4)
    others = [
        rewards[i] - rewards[(ids == ids[i]) & (np.arange(len(ids)) != i)].mean() if (ids == ids[i]).sum() > 1 else 0.0
        for i in range(len(rewards))
    ]
    np.testing.assert_allclose(leave_one_out(rewards, ids, groups=3), others, atol=1e-4)
    order = np.random.default_rng(0).permutation(len(rewards))
    moved = group_advantages(rewards[order], ids[order], groups=3)
    np.testing.assert_allclose(moved, np.asarray(group_advantages(rewards, ids, groups=3))[order], atol=1e-4)


def test_equal_rewards_have_no_advantage_and_unknown_scales_are_told():
    rewards, ids = np.full(6, 0.1, np.float32), np.array([0, 0, 0, 1, 1, 2])
    for scale in ("group", "none", "batch"):
        assert not np.asarray(group_advantages(rewards, ids, groups=3, scale=scale)).any()
    with pytest.raises(ValueError, match="no scale 'std'"):
        group_advantages(rewards, ids, groups=3, scale="std")


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_rewards_to_go(discount):
    rewards = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    baseline = np.array([0.5, -1.0], np.float32)
    expected = [
        [sum(discount ** (p - t) * rewards[b, p] for p in range(t, 6)) - baseline[b] for t in range(6)]
        for b in range(2)
    ]
    np.testing.assert_allclose(rewards_to_go(rewards, baseline, discount=discount), expected, rtol=1e-5, atol=1e-6)


def test_kl_estimates_agree_with_the_divergence():
    p, q = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 6)) * 0.3, axis=-1)
    exact = float((jnp.exp(p) * (p - q)).sum())
    for kind in ("k1", "k3"):
        assert float((jnp.exp(p) * kl_estimate(p, q, kind)).sum()) == pytest.approx(exact, rel=1e-4)
    assert float((jnp.exp(p) * kl_estimate(p, q, "k2")).sum()) == pytest.approx(exact, rel=0.1)
    assert (kl_estimate(p, q, "k3") >= 0).all() and (kl_estimate(p, q, "k2") >= 0).all()
    with pytest.raises(ValueError, match="known: k1, k2, k3"):
        kl_estimate(p, q, "k4")


def test_k2_as_a_loss_has_the_gradient_of_the_divergence():
    """Σ_x π(x) ∇ k2(x) = ∇ KL, for logits of a small policy."""
    logits, reference = jax.random.normal(jax.random.key(1), (2, 5))
    q = jax.nn.log_softmax(reference)
    exact = jax.grad(lambda z: (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - q)).sum())(logits)
    sampled = jax.grad(
        lambda z: (jax.lax.stop_gradient(jax.nn.softmax(z)) * kl_estimate(jax.nn.log_softmax(z), q, "k2")).sum()
    )(logits)
    np.testing.assert_allclose(sampled, exact, atol=1e-6)


def test_sums_and_means_over_packed_responses(packed, each_response):
    sums, means = (f(packed["logprobs"], packed["mask"], packed["segment_ids"]) for f in (sequence_sum, sequence_mean))
    for row, columns in each_response(packed):
        np.testing.assert_allclose(sums[row, columns], packed["logprobs"][row, columns].sum(), rtol=1e-5)
        np.testing.assert_allclose(means[row, columns], packed["logprobs"][row, columns].mean(), rtol=1e-5)


def test_truncated_importance(packed):
    new, old, mask = packed["logprobs"], packed["old_logprobs"], packed["mask"]
    weight = np.asarray(truncated_importance(new, old, mask, cap=1.2))
    np.testing.assert_allclose(weight[mask > 0], np.minimum(np.exp(new - old), 1.2)[mask > 0], rtol=1e-5)
    assert not np.asarray(jax.grad(lambda x: truncated_importance(x, old, mask).sum())(new)).any()
    assert np.isfinite(truncated_importance(np.where(mask > 0, new, 1e30), old, mask)).all()


def test_drifted_failures_are_left_out(packed, each_response):
    new, old = packed["logprobs"], packed["old_logprobs"]
    arguments = (packed["advantages"], packed["mask"], packed["segment_ids"])
    kept = np.asarray(kept_on_policy(new, old, *arguments, largest=0.05))
    outcomes = set()
    for row, columns in each_response(packed):
        drift = (old - new)[row, columns].mean()
        left_out = packed["advantages"][row, columns[0]] < 0 and drift > 0.05
        outcomes.add(bool(left_out))
        assert (kept[row, columns] == (0 if left_out else 1)).all()
    assert outcomes == {True, False}


def test_generalised_advantages_by_the_sum_of_the_paper():
    """Â_t = Σ_l (γλ)^l δ_{t+l} over the policy's own tokens; rewards between them belong to the token before."""
    dice = np.random.default_rng(0)
    rewards, values = dice.normal(size=(2, 3, 9))
    mask = np.array([[1] * 9, [0, 1, 1, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0, 0]])
    gamma, trace = 0.97, 0.9
    found, returns = generalised_advantages(rewards, values, mask, discount=gamma, trace=trace)
    for row in range(3):
        own = np.flatnonzero(mask[row])
        bounds = [*own, 9]
        received = [rewards[row, bounds[i] : bounds[i + 1]].sum() for i in range(len(own))]
        v = [*values[row, own], 0.0]
        deltas = [received[i] + gamma * v[i + 1] - v[i] for i in range(len(own))]
        expected = [sum((gamma * trace) ** (j - i) * deltas[j] for j in range(i, len(own))) for i in range(len(own))]
        np.testing.assert_allclose(found[row, own], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(returns[row, own], np.array(expected) + values[row, own], rtol=1e-4, atol=1e-5)
        assert not np.asarray(found)[row, mask[row] == 0].any()


def test_the_value_loss_is_that_of_ppo():
    dice = np.random.default_rng(0)
    values, old, returns = dice.normal(size=(3, 4, 5)).astype(np.float32)
    mask = (dice.random((4, 5)) < 0.7).astype(np.float32)
    v, o, r, m = (torch.tensor(x, dtype=torch.float64) for x in (values, old, returns, mask))
    v.requires_grad_(True)
    bound = torch.minimum(torch.maximum(v, o - 0.2), o + 0.2)
    expected = 0.5 * (torch.maximum((v - r) ** 2, (bound - r) ** 2) * m).sum() / m.sum()
    expected.backward()
    (loss, metrics), gradient = jax.value_and_grad(
        lambda x: clipped_value_loss(x, old, returns, mask, clip=0.2, total=mask.sum()), has_aux=True
    )(values)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, v.grad.numpy(), rtol=1e-5, atol=1e-7)
    assert 0 < float(metrics["value_clipped"]) < 1


def pairs(count=6, width=4):
    return np.random.default_rng(0).normal(size=(width, count)).astype(np.float32)


def test_bradley_terry_with_margins_and_centring():
    chosen, rejected, margin, _ = pairs()
    c, r, m = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (chosen, rejected, margin))
    expected = (-torch.nn.functional.logsigmoid(c - r - m) + 0.01 * (c + r) ** 2).mean()
    expected.backward()
    both = jax.value_and_grad(lambda a, b: bradley_terry(a, b, margin=margin, centring=0.01)[0], argnums=(0, 1))
    loss, gradients = both(chosen, rejected)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients, (c, r), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-5, atol=1e-8)
    assert float(bradley_terry(chosen, rejected)[1]["accuracy"]) == (chosen > rejected).mean()


DPO_KINDS = [("sigmoid", 0.0), ("sigmoid", 0.1), ("robust", 0.1), ("hinge", 0.0), ("ipo", 0.0)]


def dpo_by_hand(kind, h, beta, smoothing):
    f = torch.nn.functional.logsigmoid
    return {
        "sigmoid": lambda: -f(beta * h) * (1 - smoothing) - f(-beta * h) * smoothing,
        "robust": lambda: (-f(beta * h) * (1 - smoothing) + f(-beta * h) * smoothing) / (1 - 2 * smoothing),
        "hinge": lambda: torch.relu(1 - beta * h),
        "ipo": lambda: (h - 1 / (2 * beta)) ** 2,
    }[kind]().mean()


@pytest.mark.parametrize(("kind", "smoothing"), DPO_KINDS)
def test_dpo_and_its_variants(kind, smoothing):
    arrays = pairs() * 5
    c, r, rc, rr = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arrays)
    expected = dpo_by_hand(kind, (c - rc) - (r - rr), 0.3, smoothing)
    expected.backward()
    both = jax.value_and_grad(lambda *x: dpo(*x, beta=0.3, kind=kind, label_smoothing=smoothing)[0], argnums=(0, 1))
    loss, gradients = both(*arrays)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
    for ours, theirs in zip(gradients, (c, r), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=2e-5, atol=1e-7)
    metrics = dpo(*arrays, beta=0.3, kind=kind, label_smoothing=smoothing)[1]
    assert float(metrics["margin"]) == pytest.approx(
        float(metrics["reward_chosen"] - metrics["reward_rejected"]), abs=1e-5
    )


def test_an_unknown_kind_of_dpo_is_told():
    with pytest.raises(ValueError, match="known: sigmoid, robust, hinge, ipo"):
        dpo(*pairs(), kind="simpo")


def test_trajectories_that_share_a_row_do_not_see_each_other():
    rng = np.random.default_rng(4)
    rewards, values = rng.normal(size=(2, 1, 11)).astype(np.float32)
    mask = (rng.random((1, 11)) < 0.7).astype(np.float32)
    segments = np.repeat([[1, 2, 0]], [5, 4, 2], axis=1)
    together = generalised_advantages(rewards, values, mask, segments, discount=0.9, trace=0.8)
    for part in (slice(0, 5), slice(5, 9)):
        alone = generalised_advantages(rewards[:, part], values[:, part], mask[:, part], discount=0.9, trace=0.8)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[:, part], b, rtol=1e-5, atol=1e-6)
