"""Log-probability and entropy by their definitions, with all logits at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_logprobs_definition(
    hidden: Float[Array, "batch length hidden"],
    head: Float[Array, "hidden vocab"],
    targets: Int[Array, "batch length"],
    temperature: Float[Array, "batch length"] | float = 1.0,
) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
    """log p(target) and -Σ p log p with p = softmax(hidden · head / temperature)."""
    temperature = jnp.broadcast_to(jnp.asarray(temperature), targets.shape)
    logprobs = jax.nn.log_softmax(hidden @ head / temperature[..., None], axis=-1)
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    return jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0], jax.lax.stop_gradient(entropy)
