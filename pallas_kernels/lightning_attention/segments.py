"""Packed rows as counts: how many tokens came before, which sequence it is, and what a chunk must know of both."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

FAR = -1  # stands for "not of the same sequence" where a span of tokens is meant


class Layout(NamedTuple):
    """What the recurrence knows of each position, cut into chunks; ``length`` is a multiple of the chunk.

    Attributes:
      real: whether a position holds a token (its segment is not 0).
      age: tokens of the row so far, this one included; a state decays with the difference of ages.
      sequence: number of the sequence a position belongs to, from 1.
      since: tokens since the end of the chunk before, or FAR where another sequence ended it.
      until: tokens until the end of this chunk, or FAR where another sequence ends it.
      across: tokens between the ends of the chunk before and of this one, or FAR where they differ in sequence; the
        same for every position of a chunk.
    """

    real: Bool[Array, "batch length"]
    age: Int[Array, "batch length"]
    sequence: Int[Array, "batch length"]
    since: Int[Array, "batch length"]
    until: Int[Array, "batch length"]
    across: Int[Array, "batch length"]


def layout(segment_ids: Int[Array, "batch length"], chunk: int) -> Layout:
    """The layout of rows padded to whole chunks."""
    batch, length = segment_ids.shape
    real, age, sequence = counts(jnp.pad(segment_ids, ((0, 0), (0, -length % chunk))))
    ends = lambda x: x[:, chunk - 1 :: chunk]  # noqa: E731
    before = lambda x, first: jnp.pad(ends(x)[:, :-1], ((0, 0), (1, 0)), constant_values=first)  # noqa: E731
    each = lambda x: jnp.repeat(x, chunk, axis=1)  # noqa: E731
    age_before, age_after = each(before(age, 0)), each(ends(age))
    sequence_before, sequence_after = each(before(sequence, 1)), each(ends(sequence))
    since = jnp.where(sequence == sequence_before, age - age_before, FAR)
    until = jnp.where(sequence == sequence_after, age_after - age, FAR)
    across = jnp.where(sequence_before == sequence_after, age_after - age_before, FAR)
    return Layout(real, age, sequence, since, until, across)


def counts(
    segment_ids: Int[Array, "batch length"],
) -> tuple[Bool[Array, "batch length"], Int[Array, "batch length"], Int[Array, "batch length"]]:
    """Whether each position holds a token, its age, and the number of its sequence.

    A sequence starts where the segment is another than that of the last token before; padding belongs to the sequence
    before it, or to the first.
    """
    real = segment_ids != 0
    index = jnp.arange(segment_ids.shape[1])
    latest = jax.lax.cummax(jnp.where(real, index, -1), axis=1)
    before = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    previous = jnp.take_along_axis(segment_ids, jnp.maximum(before, 0), axis=1)
    starts = real & ((before < 0) | (previous != segment_ids))
    return real, jnp.cumsum(real, axis=1), jnp.maximum(jnp.cumsum(starts, axis=1), 1)
