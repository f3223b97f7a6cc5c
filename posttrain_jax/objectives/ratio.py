"""The ratio of the trained policy to the one that sampled, and what is reported of it."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def log_ratios(
    logprobs: Float[Array, "batch length"],
    old_logprobs: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
) -> Float[Array, "batch length"]:
    """log π - log π_old of trained tokens, 0 elsewhere, whatever stands there."""
    return jnp.where(mask > 0, logprobs - old_logprobs, 0.0)


def statistics(
    log_ratio: Float[Array, "batch length"],
    clipped: Bool[Array, "batch length"],
    mask: Float[Array, "batch length"],
    total: Float[Array, ""] | float,
) -> dict[str, Float[Array, ""]]:
    """``kl`` (k3 estimate of KL(π_old ‖ π), in nats), ``clipped`` and the mean ``ratio``, weighted as the loss is."""
    ratio = jnp.exp(log_ratio)
    values = {"kl": ratio - 1 - log_ratio, "clipped": clipped.astype(ratio.dtype), "ratio": ratio}
    return {name: (value * mask).sum() / total for name, value in values.items()}
