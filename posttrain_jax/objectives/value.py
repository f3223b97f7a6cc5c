"""PPO's critic: generalised advantages, and the value loss that moves no further than the policy may."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def generalised_advantages(
    rewards: Float[Array, "batch length"],
    values: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    segment_ids: Int[Array, "batch length"] | None = None,
    *,
    discount: float = 1.0,
    trace: float = 0.95,
) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
    """``(Â, returns)``: Â_t = δ_t + γλ Â_{t+1},  δ_t = r_t + γ V_{t+1} - V_t,  returns = Â + V.

    Schulman et al. 2015 (arXiv 1506.02438, equation 16). Tokens that the policy did not write
    (mask 0: prompts, tool results, padding) are stepped over: t + 1 is the next token that it wrote, rewards in between
    belong to the token before them, and behind the last one V is 0.

    Args:
      rewards: received at each token.
      values: V before each token.
      mask: 1 on the policy's tokens.
      segment_ids: which trajectory of a packed row a token belongs to; without, a row is one trajectory.
      discount: γ.
      trace: λ.
    """

    def step(carry, now):
        *carry, behind = carry
        reward, v, written, segment = now
        advantage, value, waiting = (jnp.where(segment == behind, x, 0.0) for x in carry)
        new = reward + waiting + discount * value - v + discount * trace * advantage
        advantage, value = jnp.where(written > 0, new, advantage), jnp.where(written > 0, v, value)
        waiting = jnp.where(written > 0, 0.0, waiting + reward)
        return (advantage, value, waiting, segment), jnp.where(written > 0, new, 0.0)

    none = jnp.zeros_like(values[:, 0])
    ids = jnp.ones(values.shape, jnp.int32) if segment_ids is None else segment_ids
    start, along = (none, none, none, ids[:, -1]), (rewards.T, values.T, mask.T, ids.T)
    _, advantages = jax.lax.scan(step, start, along, reverse=True)
    return advantages.T, jnp.where(mask > 0, advantages.T + values, 0.0)


def clipped_value_loss(
    values: Float[Array, "batch length"],
    old_values: Float[Array, "batch length"],
    returns: Float[Array, "batch length"],
    mask: Float[Array, "batch length"],
    *,
    clip: float = 0.2,
    total: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = 1/N Σ_t m_t ½ max((V - R)², (clip(V, V_old ± c) - R)²).

    Returns:
      The loss, and ``value_clipped``: the share of tokens whose bound value gives the larger error.
    """
    bound = jnp.clip(values, old_values - clip, old_values + clip)
    free, held = jnp.square(values - returns), jnp.square(bound - returns)
    loss = 0.5 * (jnp.maximum(free, held) * mask).sum() / total
    return loss, {"value_clipped": ((held > free) * mask).sum() / total}
