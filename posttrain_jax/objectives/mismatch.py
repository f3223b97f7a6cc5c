"""Where the sampler and the trainer compute one policy differently: weights and masks that make up for it.

π_sampler reported the probabilities, π_old is the trainer's of the same weights. The factor multiplies an objective's
mask, and no gradient flows through it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from posttrain_jax.objectives.sequences import sequence_mean


def truncated_importance(
    old_logprobs: Float[Array, "batch length"],
    sampler_logprobs: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    *,
    cap: float = 2.0,
) -> Float[Array, "batch length"]:
    """min(π_old / π_sampler, cap): truncated importance sampling (Yao et al. 2025, "Your efficient RL framework…")."""
    ratio = jnp.exp(jnp.where(mask > 0, old_logprobs - sampler_logprobs, 0.0))
    return jax.lax.stop_gradient(jnp.minimum(ratio, cap))


def kept_on_policy(
    logprobs: Float[Array, "batch length"],
    sampler_logprobs: Float[Array, "batch length"],
    advantages: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    segment_ids: Int[Array, "batch length"],
    *,
    largest: float,
) -> Float[Array, "batch length"]:
    """0 on responses with a negative advantage that have drifted, 1 elsewhere (DeepSeek-V3.2, arXiv 2512.02556, 3.1).

    A response has drifted where the mean of log π_sampler - log π over its tokens exceeds ``largest`` nats.
    """
    drift = sequence_mean(jnp.where(mask > 0, sampler_logprobs - logprobs, 0.0), mask, segment_ids)
    return jax.lax.stop_gradient(jnp.where((advantages < 0) & (drift > largest), 0.0, 1.0))
