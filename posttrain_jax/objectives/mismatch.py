"""Where the sampler and the trainer compute one policy differently: how far apart they are, and what makes up for it.

π_sampler reported the probabilities, π_old is the trainer's of the same weights. Weights and masks multiply an
objective's mask, and no gradient flows through them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from posttrain_jax.objectives.kl import kl_estimate
from posttrain_jax.objectives.sequences import sequence_mean

SPREAD = "mismatch_spread"
_LEAST, _WIDTH, _CLASSES = 1e-8, 10 ** (1 / 25), 256  # class c of `SPREAD` reaches up to LEAST · WIDTH^c nats


def disagreement(
    logprobs: Float[Array, "batch length"],
    sampler_logprobs: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    *,
    total: Float[Array, ""] | float,
) -> dict[str, Array]:
    """How far log π is from log π_sampler on sampled tokens, in parts that add up over microbatches.

    Args:
      total: number of tokens in all microbatches.

    Returns:
      ``mismatch``: mean |Δ log π| in nats. ``mismatch_kl``: KL(π_sampler ‖ π) by k3. `SPREAD`: how many tokens lie in
      each class of |Δ log π|, for `percentile`.
    """
    own, sampled = (jnp.where(mask > 0, x, 0.0) for x in (jax.lax.stop_gradient(logprobs), sampler_logprobs))
    apart = jnp.abs(own - sampled)
    classes = jnp.ceil(jnp.log(jnp.maximum(apart, _LEAST) / _LEAST) / math.log(_WIDTH))
    member = jnp.minimum(classes, _CLASSES - 1)[..., None] == jnp.arange(_CLASSES)
    return {
        "mismatch": (apart * mask).sum() / total,
        "mismatch_kl": (kl_estimate(sampled, own, "k3") * mask).sum() / total,
        SPREAD: (member & (mask > 0)[..., None]).sum(axis=(0, 1), dtype=jnp.float32),
    }


def percentile(spread: Float[Array, " classes"], share: float) -> Float[Array, ""]:
    """The |Δ log π| that a share of the tokens does not exceed, 1 for the largest; at most 10 % above."""
    running = jnp.cumsum(spread)
    return _LEAST * _WIDTH ** (running < share * running[-1]).sum()


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
