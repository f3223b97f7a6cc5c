"""The order in which a grouped product walks over its rows: a visit is one tile of rows with one group's matrix."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int


class Visits(NamedTuple):
    """A list of visits as long as it can get; the first ``count`` of them are made.

    Attributes:
      tile, group: what each visit works on; groups in order, and within one its tiles in order.
      start, end: the rows of each group.
      count: how many visits there are, as an array of one number.
    """

    tile: Int[Array, " visits"]
    group: Int[Array, " visits"]
    start: Int[Array, " groups"]
    end: Int[Array, " groups"]
    count: Int[Array, ""]


def visits(group_sizes: Int[Array, " groups"], rows: int, tile_rows: int, *, empty: bool) -> Visits:
    """Every tile that holds rows of a group, group by group. With ``empty``, groups without rows are visited once."""
    end = jnp.cumsum(group_sizes, dtype=jnp.int32)
    start = end - group_sizes
    last = -(-rows // tile_rows) - 1
    first_tile = jnp.minimum(start // tile_rows, last)
    tiles = jnp.where(group_sizes > 0, (end - 1) // tile_rows - first_tile + 1, int(empty)).astype(jnp.int32)
    done = jnp.cumsum(tiles, dtype=jnp.int32)
    index = jnp.arange(last + 1 + len(group_sizes), dtype=jnp.int32)
    group = jnp.minimum(jnp.searchsorted(done, index, side="right"), len(group_sizes) - 1).astype(jnp.int32)
    tile = jnp.clip(first_tile[group] + index - (done - tiles)[group], 0, last).astype(jnp.int32)
    return Visits(tile, group, start.astype(jnp.int32), end, done[-1])
