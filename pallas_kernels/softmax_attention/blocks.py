"""Which blocks of keys a block of queries meets, and the other way round; which of these need no mask."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

NOTHING = -1  # the segment of a block that holds padding or several segments


class Span(NamedTuple):
    """The blocks that each block meets: ``count`` of them from ``first`` on."""

    first: Int[Array, "batch blocks"]
    count: Int[Array, "batch blocks"]

    def steps(self) -> Int[Array, ""]:
        """Steps that the block with the most has to make, one at least."""
        return jnp.maximum(self.count.max(), 1)


class Blocks(NamedTuple):
    """What is known of blocks before any is read.

    Attributes:
      keys: the blocks of keys that each block of queries meets.
      queries: the blocks of queries that each block of keys meets.
      q_segment, k_segment: the one segment of a block, or NOTHING; blocks of the same see all of each other but for
        causality.
    """

    keys: Span
    queries: Span
    q_segment: Int[Array, "batch q_blocks"]
    k_segment: Int[Array, "batch k_blocks"]


def blocks(
    segment_ids: Int[Array, "batch q_padded"],
    kv_segment_ids: Int[Array, "batch k_padded"],
    query_start: Int[Array, ""],
    q_block: int,
    k_block: int,
) -> Blocks:
    """Blocks meet where some query may be as late as some key and the ranges of their segments overlap."""
    q_low, q_high, q_segment = _ranges(segment_ids, q_block)
    k_low, k_high, k_segment = _ranges(kv_segment_ids, k_block)
    last_query = query_start + (jnp.arange(q_low.shape[1]) + 1) * q_block - 1
    reached = last_query[:, None] >= jnp.arange(k_low.shape[1]) * k_block
    meet = reached & (q_low[:, :, None] <= k_high[:, None, :]) & (k_low[:, None, :] <= q_high[:, :, None])
    return Blocks(_span(meet), _span(meet.swapaxes(1, 2)), q_segment, k_segment)


def _ranges(segment_ids, block):
    """The least and the largest segment of each block, padding aside, and the only one if there is one only."""
    each = segment_ids.reshape(len(segment_ids), -1, block)
    info = jnp.iinfo(each.dtype)
    low = jnp.where(each == 0, info.max, each).min(axis=2)
    high = jnp.where(each == 0, info.min, each).max(axis=2)
    alone = (low == high) & (each != 0).all(axis=2)
    return low, high, jnp.where(alone, low, NOTHING).astype(jnp.int32)


def _span(meet: Bool[Array, "batch blocks others"]) -> Span:
    some = meet.any(axis=2)
    first = jnp.where(some, jnp.argmax(meet, axis=2), 0)
    last = meet.shape[2] - 1 - jnp.argmax(meet[:, :, ::-1], axis=2)
    return Span(first.astype(jnp.int32), jnp.where(some, last - first + 1, 0).astype(jnp.int32))


def padded(segment_ids: Int[Array, "batch length"], block: int) -> Int[Array, "batch whole"]:
    """Filled up to whole blocks with padding."""
    return jnp.pad(segment_ids.astype(jnp.int32), ((0, 0), (0, -segment_ids.shape[1] % block)))


def visited(first: jax.Array, count: jax.Array, step: Int[Array, ""]) -> Int[Array, ""]:
    """The block to read at a step: past the last one stay there, so that nothing is fetched."""
    return first + jnp.minimum(step, jnp.maximum(count - 1, 0))
