"""Rows of an embedding that lies split over a mesh, without gathering it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from posttrain_jax.parallel.placement import along, current, summed, whole


def embed(
    table: Float[Array, "vocab hidden"], tokens: Int[Array, "batch length"]
) -> Float[Array, "batch length hidden"]:
    """table[tokens].

    A device holds some columns of the table. It looks them up for the tokens of all devices that hold the others, and
    an all-to-all brings each device the whole rows of its own tokens: a table of gigabytes stays where it is. Where
    there are more tokens than the table has rows, the table is less to send, and is gathered.
    """
    place = current()
    if place is None:
        return table[tokens]
    lying = place.spec(("vocab", "embed"), table.shape)
    part = place.spec(("batch", "length"), tokens.shape)
    held, rows, lengths = along(lying, 1), along(part, 0), along(part, 1)
    if not set(held) <= set(rows + lengths):
        return table[tokens]

    if tokens.size > len(table) and not along(lying, 0):
        fetched = jax.shard_map(
            lambda table, tokens: whole(table, held, 1)[tokens],
            mesh=place.mesh,
            in_specs=(lying, part),
            out_specs=part,
            check_vma=False,
        )
        return fetched(table, tokens)

    def local(table, tokens):
        shape, words = tokens.shape, along(lying, 0)
        tokens = whole(tokens.reshape(-1), held, 0)
        if words:
            tokens = tokens - jax.lax.axis_index(words) * len(table)
            here = (tokens >= 0) & (tokens < len(table))
            found = jnp.where(here[:, None], table[jnp.where(here, tokens, 0)], 0)
            found = summed(found, words)
        else:
            found = table[tokens]
        if held:
            found = jax.lax.all_to_all(found, held, 0, 1, tiled=True)
        return found.reshape(*shape, -1)

    run = jax.shard_map(local, mesh=place.mesh, in_specs=(lying, part), out_specs=part, check_vma=False)
    return run(table, tokens)
