"""Estimates of KL(π ‖ π_ref) from single tokens sampled from π (Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def kl_estimate(
    logprobs: Float[Array, "batch length"],
    reference: Float[Array, "batch length"],
    kind: str = "k3",
) -> Float[Array, "batch length"]:
    """With q = log π_ref - log π:  k1 = -q,  k2 = q²/2,  k3 = e^q - q - 1, in nats.

    k1 and k3 have the right mean, k2 a small bias; k1 alone can be negative. As a loss only k2 has the gradient of the
    divergence on average; GRPO (arXiv 2402.03300, equation 4) adds k3.

    Raises:
      ValueError: an unknown kind.
    """
    q = reference - logprobs
    if kind == "k1":
        return -q
    if kind == "k2":
        return 0.5 * jnp.square(q)
    if kind == "k3":
        return jnp.exp(q) - q - 1
    raise ValueError(f"no KL estimate {kind!r}; known: k1, k2, k3")
