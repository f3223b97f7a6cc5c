"""Sums over the responses that share a packed row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sequence_sum(
    values: Float[Array, "batch length"], mask: Float[Array, "batch length"], segment_ids: Int[Array, "batch length"]
) -> Float[Array, "batch length"]:
    """At every token, the sum of ``values`` over the trained tokens (mask > 0) of its own sequence."""
    length = values.shape[1]
    kept = jnp.where(mask > 0, values, 0.0)
    sums = jax.vmap(lambda row, ids: jax.ops.segment_sum(row, ids, length + 1))(kept, segment_ids)
    return jnp.take_along_axis(sums, segment_ids, axis=1)


def sequence_mean(
    values: Float[Array, "batch length"], mask: Float[Array, "batch length"], segment_ids: Int[Array, "batch length"]
) -> Float[Array, "batch length"]:
    """At every token, the mean of ``values`` over the trained tokens of its own sequence; 0 where there are none."""
    count = sequence_sum(jnp.ones_like(values), mask, segment_ids)
    return sequence_sum(values, mask, segment_ids) / jnp.maximum(count, 1.0)


def pair_sums(
    values: Float[Array, "batch length"], segment_ids: Int[Array, "batch length"], pairs: int
) -> tuple[Float[Array, "batch pairs"], Float[Array, "batch pairs"]]:
    """Sums over the chosen and over the rejected sequence of each pair in a row; 0 where there is none.

    Args:
      values: of each token.
      segment_ids: 2k - 1 on the chosen and 2k on the rejected sequence of a row's k-th pair; 0 is padding.
      pairs: k at most.
    """
    sums = jax.vmap(lambda row, ids: jax.ops.segment_sum(row, ids, 2 * pairs + 1))(values, segment_ids)
    return sums[:, 1::2], sums[:, 2::2]
