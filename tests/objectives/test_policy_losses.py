"""Policy losses against their published equations, written out response by response under torch's autograd."""

import numpy as np
import pytest

from posttrain_jax.objectives.cispo import cispo
from posttrain_jax.objectives.clipped import clipped_surrogate
from posttrain_jax.objectives.gspo import gspo
from posttrain_jax.objectives.kimi import k1_5, k2, k2_5
from posttrain_jax.objectives.reinforce import reinforce

torch = pytest.importorskip("torch", reason="the oracle is torch's autograd")


def grpo(new, old, a, low=0.2, high=0.2, dual=None):
    """One response's mean over its tokens of the clipped term (GRPO, equation 3 without KL)."""
    ratio = torch.exp(new - old)
    term = torch.minimum(ratio * a, torch.clamp(ratio, 1 - low, 1 + high) * a)
    if dual is not None and a < 0:
        term = torch.maximum(term, torch.full_like(term, dual * a))
    return -term.mean()


def gspo_sequence(new, old, a, low=3e-4, high=4e-4):
    s = torch.exp((new - old).sum() / len(new))
    return -torch.minimum(s * a, torch.clamp(s, 1 - low, 1 + high) * a)


def gspo_token(new, old, a, low=3e-4, high=4e-4):
    s = torch.exp((new - old).sum() / len(new)).detach() * torch.exp(new - new.detach())
    return -torch.minimum(s * a, torch.clamp(s, 1 - low, 1 + high) * a).mean()


def k2_squared(new, old, a, tau=1.0):
    return (a - tau * (new.sum() - old.sum())) ** 2


def k1_5_gradient(new, old, a, tau=1.0):
    """Equation 3 of K1.5: ∇ log π (r - r̄) - τ/2 ∇ (log π/π_old)²."""
    return -(new.sum() * a - tau / 2 * (new.sum() - old.sum()) ** 2) + (old.sum() * a)


def k2_5_tokens(new, old, a, low=-0.5, high=0.5, tau=0.1):
    """A token at a time: outside the bounds a constant."""
    total = 0.0
    for n, o in zip(new, old, strict=True):
        q = n - o
        if q < low or q > high:
            q = q.detach()
        total = total - (torch.exp(torch.clamp(q, low, high)) * a - tau * q**2)
    return total / len(new)


CASES = {
    "grpo": (clipped_surrogate, grpo, {}),
    "dapo": (clipped_surrogate, grpo, {"low": 0.2, "high": 0.28}),
    "dual": (clipped_surrogate, grpo, {"low": 0.2, "high": 0.2, "dual": 1.5}),
    "gspo": (gspo, gspo_sequence, {"low": 0.1, "high": 0.15}),
    "gspo published": (gspo, gspo_sequence, {}),
    "gspo token": (gspo, gspo_token, {"per_token": True, "low": 0.1, "high": 0.15}),
    "k2": (k2, k2_squared, {"tau": 0.3}),
    "k1.5": (k1_5, k1_5_gradient, {"tau": 0.3}),
    "k2.5": (k2_5, k2_5_tokens, {"tau": 0.2}),
    "reinforce": (reinforce, lambda new, old, a: -(a * new).mean(), {}),
}


def published(oracle, batch, found, mode, **options):
    """Value and gradient in float64 of the mean over responses, or of the mean over all tokens of token terms."""
    options.pop("per_token", None)
    new = torch.tensor(batch["logprobs"], dtype=torch.float64, requires_grad=True)
    old = torch.tensor(batch["old_logprobs"], dtype=torch.float64)
    loss, tokens = 0.0, sum(len(columns) for _, columns in found)
    for row, columns in found:
        a = float(batch["advantages"][row, columns[0]])
        weight = 1 / len(found) if mode == "sequence_mean" else len(columns) / tokens
        loss = loss + weight * oracle(new[row, columns], old[row, columns], a, **options)
    loss.backward()
    return loss.item(), new.grad.numpy()


@pytest.mark.parametrize("mode", ["sequence_mean", "token_mean"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_published_ones(name, mode, packed, value_and_gradient, with_weights, each_response):
    objective, oracle, options = CASES[name]
    loss, gradient, metrics = value_and_gradient(objective, with_weights(packed, mode), **options)
    expected, expected_gradient = published(oracle, packed, list(each_response(packed)), mode, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
    assert np.isfinite(list(metrics.values())).all() and metrics["kl"] > 0


def test_both_kinds_of_clipping_happen_in_these_cases(packed, value_and_gradient, with_weights):
    batch = with_weights(packed, "token_mean")
    for name in ("grpo", "dapo", "gspo", "k2.5"):
        _, gradient, metrics = value_and_gradient(CASES[name][0], batch, **CASES[name][2])
        assert 0.05 < metrics["clipped"] < 0.9
        assert ((gradient == 0) & (batch["mask"] > 0)).any()


def test_k2_and_k1_5_have_one_gradient(packed, value_and_gradient, with_weights):
    batch = with_weights(packed, "sequence_mean")
    _, squared, _ = value_and_gradient(k2, batch, tau=0.4)
    _, linear, _ = value_and_gradient(k1_5, batch, tau=0.4)
    np.testing.assert_allclose(squared, 2 * 0.4 * linear, rtol=1e-4, atol=1e-7)


ON_POLICY = {
    "cispo": (cispo, {}),
    "grpo": (clipped_surrogate, {}),
    "gspo": (gspo, {}),
    "gspo token": (gspo, {"per_token": True}),
    "k1.5": (k1_5, {}),
    "k2.5": (k2_5, {}),
}


@pytest.mark.parametrize("name", ON_POLICY)
def test_on_the_sampling_policy_all_are_reinforce(name, packed, value_and_gradient, with_weights):
    batch = with_weights({**packed, "old_logprobs": packed["logprobs"]}, "token_mean")
    options = {"total": 1.0} if name == "cispo" else {}
    objective, more = ON_POLICY[name]
    _, gradient, metrics = value_and_gradient(objective, batch, **more, **options)
    _, expected, _ = value_and_gradient(reinforce, batch)
    if name == "k1.5":  # whose log-ratio is that of the whole response: every token counts as often as it has tokens
        lengths = {
            (r, s): (packed["mask"][r] * (packed["segment_ids"][r] == s)).sum() for r in range(3) for s in (1, 2, 3)
        }
        per_token = np.vectorize(lambda r, s: lengths.get((r, s), 1))(
            *np.broadcast_arrays(np.arange(3)[:, None], packed["segment_ids"])
        )
        expected = expected * per_token
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)
    assert metrics["kl"] == pytest.approx(0, abs=1e-7) and metrics["ratio"] == pytest.approx(1)


def test_the_unified_mask_has_both_limits(packed, value_and_gradient, with_weights):
    """M = 1 is CISPO; PPO's mask with the weight unclipped has the gradient of the clipped surrogate."""
    batch = with_weights(packed, "token_mean")
    free = dict(max_ratio=float("inf"), total=1.0)
    plain = value_and_gradient(cispo, batch, max_ratio=1.3, total=1.0)
    never = value_and_gradient(cispo, batch, max_ratio=1.3, mask_low=1e9, mask_high=1e9, total=1.0)
    assert plain[0] == pytest.approx(never[0], rel=1e-6)
    np.testing.assert_allclose(plain[1], never[1], rtol=1e-6)
    _, masked, _ = value_and_gradient(cispo, batch, mask_low=0.2, mask_high=0.28, **free)
    _, clipped, _ = value_and_gradient(clipped_surrogate, batch, low=0.2, high=0.28)
    np.testing.assert_allclose(masked, clipped, rtol=1e-5, atol=1e-8)
    assert not np.allclose(masked, value_and_gradient(cispo, batch, **free)[1])


@pytest.mark.parametrize("name", CASES)
def test_rows_and_their_neighbours_make_no_difference(name, packed, value_and_gradient, with_weights, each_response):
    """Each response in a row of its own, in another order, with more padding: the same loss and gradients."""
    objective, _, options = CASES[name]
    batch = with_weights(packed, "token_mean")
    loss, gradient, _ = value_and_gradient(objective, batch, **options)
    found = list(each_response(packed))[::-1]
    apart = {key: np.zeros((len(found), 20), array.dtype) for key, array in batch.items()}
    apart["logprobs"] += -7.0  # what stands in padding does not matter
    for new_row, (row, columns) in enumerate(found):
        for key, array in batch.items():
            apart[key][new_row, 3 : 3 + len(columns)] = array[row, columns]
        apart["segment_ids"][new_row, 3 : 3 + len(columns)] = 1
    alone, gradients, _ = value_and_gradient(objective, apart, **options)
    assert alone == pytest.approx(loss, rel=1e-5)
    for new_row, (row, columns) in enumerate(found):
        np.testing.assert_allclose(
            gradients[new_row, 3 : 3 + len(columns)], gradient[row, columns], rtol=1e-4, atol=1e-8
        )


@pytest.mark.parametrize("name", CASES)
def test_rows_add_up(name, packed, value_and_gradient, with_weights):
    """Microbatches: the sum over parts is the whole, because the weights know the whole."""
    objective, _, options = CASES[name]
    batch = with_weights(packed, "sequence_mean")
    whole = value_and_gradient(objective, batch, **options)
    parts = [value_and_gradient(objective, {k: v[r : r + 1] for k, v in batch.items()}, **options) for r in range(3)]
    assert sum(part[0] for part in parts) == pytest.approx(whole[0], rel=1e-5)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), whole[1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_garbage_outside_the_mask_is_harmless(name, packed, value_and_gradient, with_weights):
    objective, _, options = CASES[name]
    batch = with_weights(packed, "token_mean")
    loss, gradient, _ = value_and_gradient(objective, batch, **options)
    dirty = {key: value.copy() for key, value in batch.items()}
    dirty["logprobs"][batch["mask"] == 0] = -1e30
    dirty["old_logprobs"][batch["mask"] == 0] = 50.0
    again, gradients, _ = value_and_gradient(objective, dirty, **options)
    assert again == pytest.approx(loss, rel=1e-6) and np.isfinite(gradients).all()
    np.testing.assert_allclose(gradients, gradient, rtol=1e-6)
    assert not gradient[batch["mask"] == 0].any()
