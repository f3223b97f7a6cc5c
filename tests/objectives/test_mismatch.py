"""How far the sampler is from the trainer, in parts that add up over microbatches."""

import jax
import numpy as np
import pytest

from posttrain_jax.objectives.mismatch import SPREAD, disagreement, percentile


def arrays(scale):
    rng = np.random.default_rng(0)
    own = -rng.exponential(size=(6, 50)).astype(np.float32)
    sampled = own + scale * rng.standard_t(3, size=own.shape).astype(np.float32)
    return own, sampled, (rng.random(own.shape) < 0.6).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("parts", [1, 3])
def test_what_is_told_is_what_numpy_says(scale, parts):
    own, sampled, mask = arrays(scale)
    own, sampled = np.where(mask, own, np.nan), np.where(mask, sampled, np.nan)  # nothing outside the mask is looked at
    total = mask.sum()
    cut = zip(*(np.split(x, parts) for x in (own, sampled, mask)), strict=True)
    told = [disagreement(*part, total=total) for part in cut]
    apart = np.abs(own - sampled)[mask > 0].astype(np.float64)
    ratio = (own - sampled)[mask > 0].astype(np.float64)
    assert float(sum(t["mismatch"] for t in told)) == pytest.approx(apart.mean(), rel=1e-4)
    kl = float(sum(t["mismatch_kl"] for t in told))
    assert kl == pytest.approx((np.exp(ratio) - ratio - 1).mean(), rel=1e-3, abs=1e-8)
    spread = sum(t[SPREAD] for t in told)
    assert float(spread.sum()) == total
    for share in (0.5, 0.99, 1.0):
        exact = np.quantile(apart, share, method="inverted_cdf")
        assert exact * (1 - 1e-4) <= float(percentile(spread, share)) <= 1.1 * exact


def test_the_same_is_no_distance_apart_and_nothing_flows_back():
    own, sampled, mask = arrays(1.0)
    told = disagreement(own, own, mask, total=mask.sum())
    assert float(told["mismatch"]) == float(told["mismatch_kl"]) == 0
    assert float(percentile(told[SPREAD], 1.0)) <= 1e-8
    gradient = jax.grad(lambda x: sum(v.sum() for v in disagreement(x, sampled, mask, total=1.0).values()))(own)
    assert not np.any(gradient)
