"""Moonshot's objectives: the squared residual of Kimi K2, its gradient form in K1.5, and K2.5's, token by token.

All come from max E[r] - τ KL(π ‖ π_old), whose optimum satisfies r - r̄ = τ log(π / π_old) (K1.5, arXiv 2501.12599,
section 2.3.2; K2, arXiv 2507.20534, section 3.2). τ is a strength of regularisation, not the sampler's temperature; its
value is not published.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from posttrain_jax.objectives.ratio import log_ratios, statistics
from posttrain_jax.objectives.sequences import sequence_sum


def k2(
    logprobs: Float[Array, "batch length"],
    old_logprobs: Float[Array, "batch length"],
    advantages: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    segment_ids: Int[Array, "batch length"],
    *,
    tau: float = 1.0,
    total: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = 1/N Σ_i m_i (r_i - r̄ - τ log π(y_i)/π_old(y_i))², the log-ratio summed over the whole response.

    Args:
      logprobs: log π of the sampled tokens under the weights being trained.
      old_logprobs: log π_old, as the sampler reported them.
      advantages: r_i - r̄, the reward less its group's mean, at every token of a response.
      mask: what each token weighs; 0 where nothing is trained. The published mean over responses is that of the weights
        ``sequence_mean`` of `aggregation.token_weights`.
      segment_ids: which response of a packed row a token belongs to.
      tau: τ.
      total: N.
    """
    log_ratio = log_ratios(logprobs, old_logprobs, mask)
    residual = advantages - tau * sequence_sum(log_ratio, mask, segment_ids)
    loss = (jnp.square(residual) * mask).sum() / total
    return loss, statistics(jax.lax.stop_gradient(log_ratio), jnp.zeros_like(mask, bool), mask, total)


def k1_5(
    logprobs: Float[Array, "batch length"],
    old_logprobs: Float[Array, "batch length"],
    advantages: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    segment_ids: Int[Array, "batch length"],
    *,
    tau: float = 1.0,
    total: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = -1/N Σ_i m_i [(r_i - r̄) log π(y_i) - τ/2 (log π(y_i)/π_old(y_i))²]: `k2` divided by 2τ, up to a constant.

    The gradient that K1.5 writes out (equation 3). Arguments as for `k2`.
    """
    log_ratio = log_ratios(logprobs, old_logprobs, mask)
    whole = sequence_sum(log_ratio, mask, segment_ids)
    term = advantages * whole - tau / 2 * jnp.square(whole)
    loss = -(term * mask).sum() / total
    return loss, statistics(jax.lax.stop_gradient(log_ratio), jnp.zeros_like(mask, bool), mask, total)


def k2_5(
    logprobs: Float[Array, "batch length"],
    old_logprobs: Float[Array, "batch length"],
    advantages: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    *,
    low: float = -0.5,
    high: float = 0.5,
    tau: float = 0.1,
    total: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = -1/N Σ_t m_t [clip(ρ_t, e^low, e^high) (r - r̄) - τ (log ρ_t)²], of single tokens.

    A token whose log-ratio leaves [low, high] has no gradient, whatever the sign of its advantage. The bounds and τ are
    not published; these are ours.
    """
    log_ratio = log_ratios(logprobs, old_logprobs, mask)
    outside = (log_ratio < low) | (log_ratio > high)
    held = jnp.where(outside, jax.lax.stop_gradient(log_ratio), log_ratio)
    term = jnp.exp(jnp.clip(held, low, high)) * advantages - tau * jnp.square(held)
    return -(term * mask).sum() / total, statistics(jax.lax.stop_gradient(log_ratio), outside, mask, total)
