"""Tokens to rows sorted by expert, and back.

Dispatch and combine are each other's transposes. Written as gathers in both directions (the derivative of a gather
would be a scatter-add, which serialises), because both directions of the permutation are known.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sort_by_expert(
    chosen: Int[Array, "tokens top_k"], experts: int, block: int
) -> tuple[Int[Array, " rows"], Int[Array, "tokens top_k"], Int[Array, " experts"]]:
    """Lays the (token, choice) slots out in rows sorted by expert, each expert's share padded to whole blocks.

    A slot whose choice is ``experts`` has none: no row holds it, and its own is the last, which is past every group.

    Returns:
      slot_of_row: the flat slot a row holds, or ``tokens * top_k`` for a padding row.
      row_of_slot: the row that holds each slot: the inverse.
      group_sizes: rows of each expert, multiples of ``block``.
    """
    flat = jnp.asarray(chosen).reshape(-1)
    slots = flat.shape[0]
    total = (-(-slots // block) + experts) * block
    rank, sizes = _ranks(flat, experts)
    group_sizes = -(-sizes // block) * block
    start = jnp.append(jnp.cumsum(group_sizes) - group_sizes, total - 1)  # the last row is past every group: zero
    row_of_slot = start[flat] + rank
    slot_of_row = jnp.full(total, slots, jnp.int32).at[row_of_slot].set(jnp.arange(slots, dtype=jnp.int32))
    slot_of_row = slot_of_row.at[-1].set(slots)
    return slot_of_row, row_of_slot.reshape(chosen.shape), group_sizes


def sort_evenly(
    chosen: Int[Array, "tokens top_k"], experts: int, block: int
) -> tuple[Int[Array, " rows"], Int[Array, "tokens top_k"], Int[Array, " blocks"]]:
    """Lays the slots out in rows of which every expert has equally many; blocks beyond that go to others' free places.

    A slot whose choice is ``experts`` has none: no row holds it, and its own is one of padding.

    Returns:
      slot_of_row, row_of_slot: as of ``sort_by_expert``.
      owners: the expert of each block of rows; where a place is free, the one that it would belong to.
    """
    flat = jnp.asarray(chosen).reshape(-1)
    slots = flat.shape[0]
    own = -(-slots // (block * experts)) + 1  # blocks of each expert: one more than if all were full
    home = jnp.repeat(jnp.arange(experts, dtype=jnp.int32), own)
    rank, sizes = _ranks(flat, experts)
    blocks = -(-sizes // block)
    free = jnp.tile(jnp.arange(own), experts) >= blocks[home]
    (free_places,) = jnp.nonzero(free, size=len(home))
    sent = jnp.cumsum(jnp.maximum(blocks - own, 0))
    number = jnp.arange(len(home))  # of a guest
    guest = jnp.searchsorted(sent, number, side="right").astype(jnp.int32)
    owners = home.at[jnp.where(number < sent[-1], free_places, len(home))].set(guest, mode="drop")
    first = sent - jnp.maximum(blocks - own, 0)

    expert, block_of_slot = jnp.minimum(flat, experts - 1), rank // block
    away = free_places[jnp.clip(first[expert] + block_of_slot - own, 0, len(home) - 1)]
    row_of_slot = jnp.where(block_of_slot < own, expert * own + block_of_slot, away) * block + rank % block
    total = len(home) * block
    held = jnp.where(flat < experts, row_of_slot, total)
    slot_of_row = jnp.full(total, slots, jnp.int32).at[held].set(jnp.arange(slots, dtype=jnp.int32), mode="drop")
    row_of_slot = jnp.where(flat < experts, row_of_slot, jnp.argmax(slot_of_row))
    return slot_of_row, row_of_slot.reshape(chosen.shape), owners


FEW_PAIRS = 1 << 20  # of slots and experts, up to which counting beats sorting


def _ranks(flat, experts):
    """How many slots before each have its expert (0 for those without), and how many slots each expert has."""
    if flat.size * experts <= FEW_PAIRS:
        member = (flat[:, None] == jnp.arange(experts)).astype(jnp.int32)
        rank = jnp.take_along_axis(jnp.cumsum(member, axis=0), jnp.minimum(flat, experts - 1)[:, None], axis=1)[:, 0]
        return jnp.where(flat < experts, rank - 1, 0), member.sum(axis=0)
    order = jnp.argsort(flat, stable=True)
    ends = jnp.searchsorted(flat[order], jnp.arange(experts), side="right").astype(jnp.int32)
    sizes = jnp.diff(ends, prepend=0)
    place = jnp.zeros(flat.size, jnp.int32).at[order].set(jnp.arange(flat.size, dtype=jnp.int32))
    return jnp.where(flat < experts, place - jnp.append(ends - sizes, 0)[flat], 0), sizes


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
