"""Grouped products in plain jnp, for groups padded to whole blocks of rows.

Small matrices: one batched product, with a copy of its matrix for each block. Large ones, whose copies would cost more
than their products: a loop over the groups, with one copy for all blocks of a group.
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
    group_sizes: Int[Array, " groups"],
    finish: Callable[..., Sequence[jax.Array]] | None,
    *,
    block: int,
    transposed: bool = False,
    beside: Sequence[Float[Array, "rows width"]] = (),
    sums: int = 0,
) -> list[Float[Array, "rows width"]]:
    """``finish(lhs[0][r] @ rhs[0][g], lhs[1][r] @ rhs[1][g], …, beside[0][r], …)`` for each row r of each group g.

    The last ``sums`` results are summed over their columns. Rows past the last group are zero. Every group size is a
    multiple of ``block``. ``finish=None``: the sum of all products.
    """
    dtype = lhs[0].dtype
    rhs = [x.dequantized(dtype) if isinstance(x, Quantized) else x for x in rhs]
    if len(lhs[0]) % block:
        raise ValueError(f"the blocked lowering needs rows={len(lhs[0])} to be a multiple of block={block}")
    done: Any = finish or (lambda *found: [sum(found)])
    way = _batched if rhs[0][0].size <= FEW_ENTRIES else _looped

    def end(*x):
        found = list(done(*x))
        kept, summed = found[: len(found) - sums], found[len(found) - sums :]
        each = [y.astype(jnp.float32).sum(axis=1, keepdims=True) for y in summed]
        return [y.astype(dtype) for y in kept] + each

    return way(lhs, rhs, group_sizes, end, block, transposed, beside)


FEW_ENTRIES = 1 << 17  # of a matrix, up to which a batched product wins (benchmarks/results/kernels_cpu.json)


def _batched(lhs, rhs, group_sizes, finish, block, transposed, beside):
    group, inside = _groups(group_sizes, len(lhs[0]), block)

    def product(i, matrices):
        rows = lhs[min(i, len(lhs) - 1)]
        matrices = matrices[group] * inside[:, None, None].astype(matrices.dtype)
        dims = (((2,), (2 if transposed else 1,)), ((0,), (0,)))
        return jax.lax.dot_general(rows.reshape(-1, block, rows.shape[1]), matrices, dims).reshape(len(rows), -1)

    return finish(*(product(i, matrices) for i, matrices in enumerate(rhs)), *beside)


def _looped(lhs, rhs, group_sizes, finish, block, transposed, beside):
    ends = jnp.cumsum(group_sizes) // block
    matrices_of = lambda g: [jax.lax.dynamic_index_in_dim(x, g, keepdims=False) for x in rhs]  # noqa: E731
    dims = (((1,), (1 if transposed else 0,)), ((), ()))

    def one(index, matrices):
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, index * block, block)  # noqa: E731
        rows = [cut(x) for x in lhs]
        found = (jax.lax.dot_general(rows[min(i, len(rows) - 1)], m, dims) for i, m in enumerate(matrices))
        return finish(*found, *(cut(x) for x in beside))

    def group(g, out):
        matrices = matrices_of(g)

        def step(index, out):
            found = one(index, matrices)
            return [
                jax.lax.dynamic_update_slice_in_dim(o, x, index * block, 0) for o, x in zip(out, found, strict=True)
            ]

        return jax.lax.fori_loop(ends[g] - group_sizes[g] // block, ends[g], step, out)

    shapes = jax.eval_shape(lambda: one(0, matrices_of(0)))
    out = [jnp.zeros((len(lhs[0]), x.shape[1]), x.dtype) for x in shapes]
    return jax.lax.fori_loop(0, len(group_sizes), group, out)


def transposed_product(
    lhs: Float[Array, "rows inner"],
    rhs: Float[Array, "rows outer"],
    group_sizes: Int[Array, " groups"],
    *,
    block: int,
    dtype: Any,
) -> Float[Array, "groups inner outer"]:
    """lhsᵀ rhs over the rows of each group: the gradient of the matrices. Groups without rows get zeros."""
    group, inside = _groups(group_sizes, len(lhs), block)
    cut = lambda x: x.reshape(-1, block, x.shape[1])  # noqa: E731
    total = jnp.zeros((len(group_sizes), lhs.shape[1], rhs.shape[1]), jnp.float32)

    def add(total, piece):
        lhs, rhs, group, inside = piece
        here = jnp.where(inside, jax.lax.dot(lhs.T, rhs, preferred_element_type=jnp.float32), 0.0)
        return total.at[group].add(here), None

    return jax.lax.scan(add, total, (cut(lhs), cut(rhs), group, inside))[0].astype(dtype)


def _groups(group_sizes, rows, block):
    """The group of each block of rows, and whether there is one."""
    first_row = jnp.arange(rows // block) * block
    group = jnp.searchsorted(jnp.cumsum(group_sizes), first_row, side="right", method="compare_all")
    return jnp.minimum(group, len(group_sizes) - 1), group < len(group_sizes)
