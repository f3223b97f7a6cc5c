"""Grouped products in training on a CPU: every group has the same number of blocks of rows, and may send some to others.

One batched product serves the blocks that lie with their own group, which is twice as fast as a loop over the groups.
The blocks that a group had no room for are guests in free places of other groups; a loop then does them over, each with
its own matrix. What a product costs thus grows gently with how unevenly the rows are spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul.quantized import Quantized


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
    """As ``xla.products``, for rows in blocks of which ``owners`` tells the groups; places that are free are multiplied too."""
    dtype = lhs[0].dtype
    matrices = [x.dequantized(dtype) if isinstance(x, Quantized) else x for x in rhs]
    groups, block = len(matrices[0]), len(lhs[0]) // len(owners)

    def product(rows, own):
        dims = (((2,), (2 if transposed else 1,)), ((0,), (0,)))
        each = [jax.lax.dot_general(rows[min(i, len(rows) - 1)], m, dims) for i, m in enumerate(own)]
        return [_flat(x) for x in each] if finish else [_flat(sum(each))]

    def visit(place, out):
        own = [jax.lax.dynamic_slice_in_dim(m, owners[place], 1) for m in matrices]
        found = product([_block(x, place, block)[None] for x in lhs], own)
        return [jax.lax.dynamic_update_slice_in_dim(o, x, place * block, 0) for o, x in zip(out, found, strict=True)]

    each = _over_guests(visit, owners, groups, product([_apart(x, groups) for x in lhs], matrices))
    found: list[Any] = list(finish(*each, *beside)) if finish else each
    kept, summed = found[: len(found) - sums], found[len(found) - sums :]
    return [y.astype(dtype) for y in kept] + [y.astype(jnp.float32).sum(axis=1, keepdims=True) for y in summed]


def transposed_product(
    lhs: Float[Array, "rows inner"], rhs: Float[Array, "rows outer"], owners: Int[Array, " blocks"], *, groups: int, dtype: Any
) -> Float[Array, "groups inner outer"]:
    """lhsᵀ rhs over the rows of each group: the gradient of the matrices. One side is zero in rows of no group."""
    block = len(lhs) // len(owners)

    def product(lhs, rhs):
        return jax.lax.dot_general(lhs, rhs, (((1,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)

    def visit(place, total):
        found = product(_block(lhs, place, block)[None], _block(rhs, place, block)[None])
        own = jax.lax.dynamic_slice_in_dim(total, owners[place], 1)
        return jax.lax.dynamic_update_slice_in_dim(total, own + found, owners[place], 0)

    at_home = jnp.repeat(~_guests(owners, groups), block)[:, None]
    total = product(_apart(jnp.where(at_home, lhs, 0), groups), _apart(rhs, groups))
    return _over_guests(visit, owners, groups, total).astype(dtype)


def _guests(owners, groups):
    return owners != jnp.arange(len(owners)) // (len(owners) // groups)


def _over_guests(visit, owners, groups, carry):
    """``visit(place, carry)`` for every block that lies with another group."""
    guests = _guests(owners, groups)
    (places,) = jnp.nonzero(guests, size=len(owners))
    return jax.lax.fori_loop(0, guests.sum(), lambda i, carry: visit(places[i], carry), carry)


def _block(x, place, block):
    return jax.lax.dynamic_slice_in_dim(x, place * block, block)


def _apart(x, groups):
    return x.reshape(groups, -1, x.shape[-1])


def _flat(x):
    return x.reshape(-1, x.shape[-1])
