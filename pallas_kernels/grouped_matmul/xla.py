"""Grouped products in plain jnp, for groups padded to whole blocks of rows.

A loop over the groups cuts each group's rows into chunks: one matrix product a chunk, whose size the compiler knows. No
matrix is copied but once for its group, and rows past a group are never touched.

XLA sums in another order in products of another size. Where nothing is differentiated all chunks are one block, so that
no bit of a row depends on how many rows its group has. Training takes large chunks first, which are faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul.quantized import Quantized

CHUNKS = (4, 1)  # blocks in a chunk: more sizes take longer to compile (benchmarks/results/kernels_cpu.json)


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
    large: bool = False,
) -> list[Float[Array, "rows width"]]:
    """``finish(lhs[0][r] @ rhs[0][g], lhs[1][r] @ rhs[1][g], …, beside[0][r], …)`` for each row r of each group g.

    The last ``sums`` results are summed over their columns. Rows past the last group are zero. Every group size is a
    multiple of ``block``. ``finish=None``: the sum of all products. ``large`` chunks let a row's last bits depend
    on the size of its group.
    """
    dtype = lhs[0].dtype
    matrices = [x.dequantized(dtype) if isinstance(x, Quantized) else x for x in rhs]
    if len(lhs[0]) % block:
        raise ValueError(f"the blocked lowering needs rows={len(lhs[0])} to be a multiple of block={block}")
    dims = (((1,), (1 if transposed else 0,)), ((), ()))

    def product(rows, own):
        each = [jax.lax.dot_general(rows[min(i, len(rows) - 1)], m, dims) for i, m in enumerate(own)]
        return each if finish else [sum(each)]

    def group(g, out):
        own = [jax.lax.dynamic_index_in_dim(m, g, keepdims=False) for m in matrices]

        def step(start, size, out):
            found = product([_rows(x, start, size) for x in lhs], own)
            return [jax.lax.dynamic_update_slice_in_dim(o, x, start, 0) for o, x in zip(out, found, strict=True)]

        return _in_chunks(step, sizes, group_sizes, g, out)

    sizes = _sizes(block, len(lhs[0])) if large else (block,)
    shapes = jax.eval_shape(lambda: product(lhs, [m[0] for m in matrices]))
    each = jax.lax.fori_loop(0, len(group_sizes), group, [jnp.zeros(x.shape, x.dtype) for x in shapes])
    return finished(each, finish, beside, sums, dtype)


def finished(
    each: list[Float[Array, "rows width"]],
    finish: Callable[..., Sequence[jax.Array]] | None,
    beside: Sequence[Float[Array, "rows width"]],
    sums: int,
    dtype: Any,
) -> list[Float[Array, "rows width"]]:
    """What ``finish`` makes of the products in ``dtype``, and its last ``sums`` results summed over their columns."""
    found: list[Any] = list(finish(*each, *beside)) if finish else each
    kept, summed = found[: len(found) - sums], found[len(found) - sums :]
    return [y.astype(dtype) for y in kept] + [y.astype(jnp.float32).sum(axis=1, keepdims=True) for y in summed]


def transposed_product(
    lhs: Float[Array, "rows inner"],
    rhs: Float[Array, "rows outer"],
    group_sizes: Int[Array, " groups"],
    *,
    block: int,
    dtype: Any,
) -> Float[Array, "groups inner outer"]:
    """lhsᵀ rhs over the rows of each group: the gradient of the matrices. Groups without rows get zeros."""

    sizes = _sizes(block, len(lhs))

    def group(g, total):
        def step(start, size, own):
            rows = _rows(lhs, start, size), _rows(rhs, start, size)
            return own + jax.lax.dot_general(*rows, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

        own = _in_chunks(step, sizes, group_sizes, g, jnp.zeros(total.shape[1:], jnp.float32))
        return jax.lax.dynamic_update_index_in_dim(total, own.astype(dtype), g, 0)

    total = jnp.zeros((len(group_sizes), lhs.shape[1], rhs.shape[1]), dtype)
    return jax.lax.fori_loop(0, len(group_sizes), group, total)


def _sizes(block, rows):
    return tuple(blocks * block for blocks in CHUNKS if blocks * block <= rows)


def _rows(x, start, size):
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def _in_chunks(step, sizes, group_sizes, g, carry):
    """``step(first row, size, carry)`` for every chunk of group ``g``, of the first of the ``sizes`` that fits."""
    end = jnp.cumsum(group_sizes)[g]
    start = end - group_sizes[g]
    for size in sizes:
        count = (end - start) // size
        one = lambda i, carry, start=start, size=size: step(start + i * size, size, carry)  # noqa: E731
        carry = jax.lax.fori_loop(0, count, one, carry)
        start = start + count * size
    return carry
