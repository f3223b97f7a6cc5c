"""Grouped products for training on a CPU: every group has equally many blocks of rows, and may send more to others.

One batched product serves the blocks at home, in half to three quarters of the time of a loop over the groups.
Blocks beyond that are guests in free places of other groups; a loop then does them over, each with its own matrix. So
the cost grows with how unevenly the rows are spread. A row's last bits depend on whether it is a guest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul.quantized import Quantized
from pallas_kernels.grouped_matmul.xla import finished

RUN = 4  # guests of one group, side by side, that are done at a time


def products(
    lhs: Sequence[Float[Array, "rows inner"]],
    rhs: Sequence[Float[Array, "groups inner outer"] | Quantized],
    owners: Int[Array, " blocks"],
    finish: Callable[..., Sequence[jax.Array]] | None,
    *,
    transposed: bool = False,
    beside: Sequence[Float[Array, "rows width"]] = (),
    sums: int = 0,
) -> list[Float[Array, "rows width"]]:
    """As ``xla.products``, for blocks of rows whose groups ``owners`` tells. Free places count as the group's there."""
    dtype = lhs[0].dtype
    matrices = [x.dequantized(dtype) if isinstance(x, Quantized) else x for x in rhs]
    groups, block = len(matrices[0]), len(lhs[0]) // len(owners)

    def product(rows, own):
        dims = (((2,), (2 if transposed else 1,)), ((0,), (0,)))
        each = [jax.lax.dot_general(rows[min(i, len(rows) - 1)], m, dims) for i, m in enumerate(own)]
        return [_flat(x) for x in each] if finish else [_flat(sum(each))]

    def visit(place, count, out):
        own = [jax.lax.dynamic_slice_in_dim(m, owners[place], 1) for m in matrices]
        found = product([_rows(x, place, block, count) for x in lhs], own)
        return [jax.lax.dynamic_update_slice_in_dim(o, x, place * block, 0) for o, x in zip(out, found, strict=True)]

    each = _over_guests(visit, owners, groups, product([_apart(x, groups) for x in lhs], matrices))
    return finished(each, finish, beside, sums, dtype)


def transposed_product(
    lhs: Float[Array, "rows inner"],
    rhs: Float[Array, "rows outer"],
    owners: Int[Array, " blocks"],
    *,
    groups: int,
    dtype: Any,
) -> Float[Array, "groups inner outer"]:
    """lhsᵀ rhs over the rows of each group: the gradient of the matrices. One side must be zero in padding rows."""
    block = len(lhs) // len(owners)

    def product(lhs, rhs):
        return jax.lax.dot_general(lhs, rhs, (((1,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)

    def visit(place, count, total):
        found = product(_rows(lhs, place, block, count), _rows(rhs, place, block, count))
        own = jax.lax.dynamic_slice_in_dim(total, owners[place], 1)
        return jax.lax.dynamic_update_slice_in_dim(total, own + found, owners[place], 0)

    at_home = jnp.repeat(~_guests(owners, groups), block)[:, None]
    total = product(_apart(jnp.where(at_home, lhs, 0), groups), _apart(rhs, groups))
    return _over_guests(visit, owners, groups, total).astype(dtype)


def _guests(owners, groups):
    return owners != jnp.arange(len(owners)) // (len(owners) // groups)


def _over_guests(visit, owners, groups, carry):
    """``visit(place, count, carry)`` for all blocks that lie with other groups, ``RUN`` at a time where they adjoin."""
    guests = _guests(owners, groups)
    (places,) = jnp.nonzero(guests, size=len(owners))

    def step(state):
        i, carry = state
        last = places.at[i + RUN - 1].get(mode="fill", fill_value=-1)
        run = (last == places[i] + RUN - 1) & (owners[last] == owners[places[i]])
        carry = jax.lax.cond(run, partial(visit, places[i], RUN), partial(visit, places[i], 1), carry)
        return i + jnp.where(run, RUN, 1), carry

    return jax.lax.while_loop(lambda state: state[0] < guests.sum(), step, (jnp.int32(0), carry))[1]


def _rows(x, place, block, count):
    return jax.lax.dynamic_slice_in_dim(x, place * block, count * block)[None]


def _apart(x, groups):
    return x.reshape(groups, -1, x.shape[-1])


def _flat(x):
    return x.reshape(-1, x.shape[-1])
