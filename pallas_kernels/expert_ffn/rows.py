"""Tokens to rows sorted by expert, and back.

Dispatch and combine are each other's transposes. Written as gathers in both directions (the derivative of a gather
would be a scatter-add, which serialises), because both directions of the permutation are known.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sort_by_expert(
    chosen: Int[Array, "tokens top_k"], experts: int, block: int, *, radix: bool = False
) -> tuple[Int[Array, " rows"], Int[Array, "tokens top_k"], Int[Array, " experts"]]:
    """Lays the (token, choice) slots out in rows sorted by expert, each expert's share padded to whole blocks.

    Args:
      radix: finds the slots' ranks with a stable sort, which is what a GPU is fast at, not with running counts.

    Returns:
      slot_of_row: the flat slot a row holds, or ``tokens * top_k`` for a padding row.
      row_of_slot: the row that holds each slot: the inverse.
      group_sizes: rows of each expert, multiples of ``block``.
    """
    flat = jnp.asarray(chosen).reshape(-1)
    slots = flat.shape[0]
    total = (-(-slots // block) + experts) * block
    rank, counts = (_ranks_by_sorting if radix else _ranks_by_counting)(flat, experts)
    group_sizes = -(-counts // block) * block
    row_of_slot = (jnp.cumsum(group_sizes) - group_sizes)[flat] + rank
    slot_of_row = jnp.full(total, slots, jnp.int32).at[row_of_slot].set(jnp.arange(slots, dtype=jnp.int32))
    return slot_of_row, row_of_slot.reshape(chosen.shape), group_sizes


def _ranks_by_counting(flat, experts):
    member = (flat[:, None] == jnp.arange(experts)).astype(jnp.int32)
    rank = jnp.take_along_axis(jnp.cumsum(member, axis=0), flat[:, None], axis=1)[:, 0] - 1
    return rank, member.sum(axis=0)


def _ranks_by_sorting(flat, experts):
    order = jnp.argsort(flat, stable=True)
    ends = jnp.searchsorted(flat[order], jnp.arange(experts), side="right").astype(jnp.int32)
    counts = jnp.diff(ends, prepend=0)
    place = jnp.zeros(len(flat), jnp.int32).at[order].set(jnp.arange(len(flat), dtype=jnp.int32))
    return place - (ends - counts)[flat], counts


def dispatch(
    tokens: Float[Array, "tokens hidden"],
    slot_of_row: Int[Array, " rows"],
    top_k: int,
    weights: Float[Array, "tokens top_k"] | None = None,
) -> Float[Array, "rows hidden"]:
    """rows[r] = tokens[token of slot_of_row[r]], times its weight if ``weights`` are given.

    Padding rows repeat the last token; with weights they are zero.
    """
    rows = jnp.asarray(tokens)[jnp.minimum(slot_of_row // top_k, len(tokens) - 1)]
    if weights is None:
        return rows
    return rows * jnp.append(weights.reshape(-1), jnp.zeros(1, weights.dtype))[slot_of_row][:, None].astype(rows.dtype)


def combine(
    rows: Float[Array, "rows hidden"],
    row_of_slot: Int[Array, "tokens top_k"],
    weights: Float[Array, "tokens top_k"] | None = None,
) -> Float[Array, "tokens hidden"]:
    """y[t] = Σ_k weights[t, k] · rows[row_of_slot[t, k]]; all weights 1 if None."""

    def share(k):
        row = rows[row_of_slot[:, k]]
        return row if weights is None else weights[:, k, None].astype(rows.dtype) * row

    total = share(0)
    for k in range(1, row_of_slot.shape[1]):
        total += share(k)
    return total
