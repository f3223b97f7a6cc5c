"""Group sequence policy optimisation (GSPO, arXiv 2507.18071): one importance ratio for a whole response."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from posttrain_jax.objectives.ratio import log_ratios, statistics
from posttrain_jax.objectives.sequences import sequence_mean


def gspo(
    logprobs: Float[Array, "batch length"],
    old_logprobs: Float[Array, "batch length"],
    advantages: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    segment_ids: Int[Array, "batch length"],
    *,
    low: float = 3e-4,
    high: float = 4e-4,
    per_token: bool = False,
    total: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = -1/N Σ_i m_i min(s_i Â_i, clip(s_i, 1 - low, 1 + high) Â_i),  s_i = exp(1/|o_i| Σ_t log ρ_it).

    The published mean over responses is that of the weights ``sequence_mean`` of `aggregation.token_weights`.

    Args:
      logprobs: log π of the sampled tokens under the weights being trained.
      old_logprobs: log π_old, as the sampler reported them.
      advantages: Â; with ``per_token`` it may differ from token to token.
      mask: what each token weighs; 0 where nothing is trained.
      segment_ids: which response of a packed row a token belongs to.
      low: how far below 1 a ratio still counts (section 5.1 has 3e-4).
      high: how far above (4e-4).
      per_token: GSPO-token (equations 13 and 14): s_it = sg(s_i) · π / sg(π), the same value and, with equal
        advantages, the same gradient.
      total: N.
    """
    log_ratio = log_ratios(logprobs, old_logprobs, mask)
    log_s = sequence_mean(log_ratio, mask, segment_ids)
    if per_token:
        log_s = jax.lax.stop_gradient(log_s - log_ratio) + log_ratio
    s = jnp.exp(log_s)
    term = jnp.minimum(s * advantages, jnp.clip(s, 1 - low, 1 + high) * advantages)
    still = jnp.where(advantages > 0, s > 1 + high, s < 1 - low)
    return -(term * mask).sum() / total, statistics(jax.lax.stop_gradient(log_ratio), still, mask, total)
