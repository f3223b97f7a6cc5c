"""REINFORCE on sampled tokens, with the advantages of RLOO or any other baseline (arXiv 2402.14740)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from posttrain_jax.objectives.ratio import log_ratios, statistics


def reinforce(
    logprobs: Float[Array, "batch length"],
    old_logprobs: Float[Array, "batch length"],
    advantages: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    *,
    total: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = -1/N Σ_t m_t Â_t log π(o_t): right on the policy that sampled, and nowhere else.

    ``old_logprobs`` are for the metrics alone. Arguments as for `clipped.clipped_surrogate`.
    """
    log_ratio = log_ratios(jax.lax.stop_gradient(logprobs), old_logprobs, mask)
    loss = -(advantages * jnp.where(mask > 0, logprobs, 0.0) * mask).sum() / total
    return loss, statistics(log_ratio, jnp.zeros_like(mask, bool), mask, total)
