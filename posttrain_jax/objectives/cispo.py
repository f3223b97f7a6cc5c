"""CISPO: clipped importance-sampling-weight policy optimisation (MiniMax-M1, arXiv 2506.13585, 3.1, eq. 4-5)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from posttrain_jax.objectives.ratio import log_ratios, statistics


def cispo(
    logprobs: Float[Array, "batch length"],
    old_logprobs: Float[Array, "batch length"],
    advantages: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    *,
    max_ratio: float = 5.0,
    min_ratio: float = 0.0,
    mask_low: float | None = None,
    mask_high: float | None = None,
    total: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = -1/N Σ_t sg(clip(ρ_t, min_ratio, max_ratio)) · Â_t · log π(o_t),  ρ_t = π(o_t) / π_old(o_t).

    The weight is clipped, never the token: every token keeps its gradient.

    Args:
      logprobs: log π of the sampled tokens under the weights being trained.
      old_logprobs: log π_old, as the sampler reported them.
      advantages: Â, the same for all tokens of a response.
      mask: 1 on sampled tokens, 0 elsewhere.
      max_ratio: cap of ρ in absolute form. The paper writes 1 + ε_high and does not publish the value; 4 to 8 works
        alike (arXiv 2510.13786), 5 is our default.
      min_ratio: floor of ρ; 0 is none, as in the paper's practice.
      mask_low, mask_high: the unified form (equations 6 and 7): tokens with Â > 0 and ρ > 1 + mask_high, or Â < 0 and
        ρ < 1 - mask_low, do not count. None masks nothing, which is CISPO; with the weight unclipped and both given it
        has PPO's gradient.
      total: N, sampled tokens of the whole minibatch; by default those of this mask.

    Returns:
      The loss, and metrics: ``kl`` the k3 estimate of KL(π_old ‖ π) in nats a token, ``clipped`` the share of tokens
      whose weight was clipped, ``ratio`` the mean ρ. Each is a sum over tokens divided by N.
    """
    total = jnp.maximum(mask.sum(), 1.0) if total is None else total
    log_ratio = jax.lax.stop_gradient(log_ratios(logprobs, old_logprobs, mask))
    ratio = jnp.exp(log_ratio)
    weight = jnp.clip(ratio, min_ratio, max_ratio)
    above = (advantages > 0) & (ratio > 1 + mask_high) if mask_high is not None else False
    below = (advantages < 0) & (ratio < 1 - mask_low) if mask_low is not None else False
    counted = jnp.where(above | below, 0.0, mask)

    loss = -(weight * advantages * jnp.where(mask > 0, logprobs, 0.0) * counted).sum() / total
    return loss, statistics(log_ratio, (ratio != weight) | (counted != mask), mask, total)
