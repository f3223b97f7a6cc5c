"""Advantages: how much better a response, or the rest of one, went than expected."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def group_advantages(
    rewards: Float[Array, " responses"],
    group_ids: Int[Array, " responses"],
    *,
    groups: int,
    scale: str = "group",
    epsilon: float = 1e-6,
) -> Float[Array, " responses"]:
    """Â_i = (R_i - mean of its group) / (standard deviation + epsilon).

    Args:
      rewards: one number a response.
      group_ids: which group, in 0 .. groups - 1, a response belongs to. Groups may differ in size.
      groups: how many groups there are (static).
      scale: whose standard deviation: the group's (GRPO, arXiv 2402.03300, section 4.1.2), no one's (Dr. GRPO, Kimi
        K2), or that of all centred rewards (ScaleRL, arXiv 2510.13786).
      epsilon: keeps a group of equal rewards at advantage 0.

    Raises:
      ValueError: an unknown scale.
    """
    centred, sizes = _centred(rewards, group_ids, groups)
    if scale == "none":
        return centred
    if scale == "group":
        variance = jax.ops.segment_sum(jnp.square(centred), group_ids, groups) / sizes
        return centred / (jnp.sqrt(variance)[group_ids] + epsilon)
    if scale == "batch":
        return centred / (jnp.sqrt(jnp.square(centred).mean()) + epsilon)
    raise ValueError(f"no scale {scale!r}; known: group, none, batch")


def leave_one_out(
    rewards: Float[Array, " responses"], group_ids: Int[Array, " responses"], *, groups: int
) -> Float[Array, " responses"]:
    """Â_i = R_i - mean of the others in its group (RLOO, arXiv 2402.14740, equation 9); 0 for a response alone."""
    centred, sizes = _centred(rewards, group_ids, groups)
    size = sizes[group_ids]
    return jnp.where(size > 1, centred * size / jnp.maximum(size - 1, 1), 0.0)


def rewards_to_go(
    rewards: Float[Array, "batch length"], baseline: Float[Array, " batch"], *, discount: float = 1.0
) -> Float[Array, "batch length"]:
    """Â_t = Σ_{p ≥ t} γ^(p-t) r_p - B of a trajectory (MiniMax-M2's report), one a row.

    Args:
      rewards: received at each token or step; 0 elsewhere.
      baseline: B of each trajectory.
      discount: γ.
    """

    def step(later, reward):
        now = reward + discount * later
        return now, now

    _, returns = jax.lax.scan(step, jnp.zeros_like(baseline), rewards.T, reverse=True)
    return returns.T - baseline[:, None]


def _centred(rewards, group_ids, groups):
    """Rewards less their group's mean, and the groups' sizes."""
    # Measured from the group's largest, equal rewards are exact zeros, whatever rounding would make of their mean.
    rewards = rewards - jax.ops.segment_max(rewards, group_ids, groups)[group_ids]
    sizes = jnp.maximum(jax.ops.segment_sum(jnp.ones_like(rewards), group_ids, groups), 1.0)
    mean = jax.ops.segment_sum(rewards, group_ids, groups) / sizes
    return rewards - mean[group_ids], sizes
