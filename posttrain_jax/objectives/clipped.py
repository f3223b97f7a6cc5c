"""The clipped surrogate of PPO (arXiv 1707.06347, equation 7), which GRPO, DAPO and Dr. GRPO share.

They differ in what surrounds it: GRPO (arXiv 2402.03300) takes standardised group advantages, the mean over responses
of their token means, and a KL term; DAPO (arXiv 2503.14476) clips higher above than below (0.28, 0.2) and takes the
mean over all tokens; Dr. GRPO (arXiv 2503.20783) takes unstandardised advantages and a constant divisor.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from posttrain_jax.objectives.ratio import log_ratios, statistics


def clipped_surrogate(
    logprobs: Float[Array, "batch length"],
    old_logprobs: Float[Array, "batch length"],
    advantages: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    total: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = -1/N Σ_t m_t min(ρ_t Â_t, clip(ρ_t, 1 - low, 1 + high) Â_t),  ρ_t = π(o_t) / π_old(o_t).

    Args:
      logprobs: log π of the sampled tokens under the weights being trained.
      old_logprobs: log π_old, as the sampler reported them.
      advantages: Â.
      mask: what each token weighs (`aggregation.token_weights`), or 1; 0 where nothing is trained.
      low: how far below 1 the ratio still counts.
      high: how far above.
      dual: with a negative advantage the term is no larger than ``dual`` · |Â| (arXiv 1912.09729); None is no bound.
      total: N.

    Returns:
      The loss, and the metrics of `ratio.statistics`, where ``clipped`` is the share of tokens without a gradient.
    """
    log_ratio = log_ratios(logprobs, old_logprobs, mask)
    ratio = jnp.exp(log_ratio)
    term = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages)
    if dual is not None:
        term = jnp.where(advantages < 0, jnp.maximum(term, dual * advantages), term)
    loss = -(term * mask).sum() / total
    still = jnp.where(advantages > 0, ratio > 1 + high, ratio < 1 - low)
    if dual is not None:
        still |= (advantages < 0) & (ratio > dual)
    return loss, statistics(jax.lax.stop_gradient(log_ratio), still, mask, total)
