"""Grouped products on an NVIDIA Hopper GPU (Pallas, Mosaic GPU).

Groups are padded to whole tiles of 128 rows, so a tile has one matrix, which a small array names, and nothing is
masked. As many blocks of threads as there are SMs walk over the tiles of the result, all columns of a tile of rows
before the next: those under way at a time read the same few matrices and rows, out of L2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels import tiles
from pallas_kernels.gpu_ring import LINE, WARPGROUPS, Ring, ring_types, specialized, swizzled
from pallas_kernels.grouped_matmul.quantized import Quantized

ROWS = 128  # of a tile, half of them for each warpgroup
COLUMNS = 128  # that every width is a multiple of
HALF = ROWS // WARPGROUPS


def why_not(matrices: Float[Array, "groups inner outer"] | Quantized, dtype: Any, block: int | None) -> str | None:
    """Why these matrices, and rows of ``dtype`` in blocks of ``block``, cannot run here, or None."""
    if isinstance(matrices, Quantized):
        return "quantised matrices are not dequantised in its kernel"
    if not matrices.dtype == dtype == jnp.bfloat16:
        return f"it multiplies bfloat16 alone, not {jnp.dtype(dtype)} rows with {matrices.dtype} matrices"
    if not block or block % ROWS:
        return f"it needs groups padded to a multiple of {ROWS} rows, and block={block} does not promise that"
    wrong = {name: n for name, n in zip(("inner", "outer"), matrices.shape[1:], strict=True) if n % COLUMNS}
    return " and ".join(f"{n}={s} is no multiple of {COLUMNS}" for n, s in wrong.items()) or None


def products(
    lhs: Sequence[Float[Array, "rows inner"]],
    rhs: Sequence[Float[Array, "groups inner outer"]],
    group_sizes: Int[Array, " groups"],
    finish: Callable[..., Sequence[jax.Array]] | None,
    outputs: int = 1,
    *,
    transposed: bool = False,
    beside: Sequence[Float[Array, "rows width"]] = (),
    sums: int = 0,
    name: str = "grouped_matmul",
) -> list[Float[Array, "rows width"]]:
    """``finish(lhs[0][r] @ rhs[0][g], lhs[0][r] @ rhs[1][g], …)`` for each row r of each group g, in one pass.

    Args:
      lhs: rows, one array for all matrices, or with ``finish=None`` one for each.
      rhs: ``[groups, inner, outer]`` each, or with ``transposed`` ``[groups, outer, inner]``.
      group_sizes: multiples of 128. Their sum may be less than the rows; the rest is zero in the result.
      finish: of float32 tiles, to ``outputs`` tiles, and of zeros to zeros; None for the sum of all products.
      beside, sums: as on a TPU, for one product; what finishes it then is left to XLA, after the kernel.
    """
    if beside and finish:
        (found,) = products(lhs, rhs, group_sizes, None, transposed=transposed, name=name)
        done = list(finish(found.astype(jnp.float32), *beside))
        each = [x.sum(axis=1, keepdims=True) for x in done[len(done) - sums :]]
        return [x.astype(found.dtype) for x in done[: len(done) - sums]] + each
    rows, inner = lhs[0].shape
    outer = rhs[0].shape[1 if transposed else 2]
    sizes = tiles.lookup("grouped_matmul")
    # products that are finished together share the registers
    together = 1 if finish is None else len(rhs)
    columns = tiles.largest_divisor(outer // COLUMNS, sizes["columns"] // COLUMNS // together) * COLUMNS
    stored = min(columns, sizes["stored"])
    first_row = jnp.arange(rows // ROWS, dtype=jnp.int32) * ROWS
    group_of_tile = jnp.searchsorted(jnp.cumsum(group_sizes), first_row, side="right", method="compare_all")
    matrix = (columns, LINE) if transposed else (LINE, columns)
    return plgpu.kernel(
        partial(_kernel, lhs=len(lhs), rhs=len(rhs), finish=finish, columns=columns, transposed=transposed),
        out_type=[jax.ShapeDtypeStruct((rows, outer), lhs[0].dtype)] * outputs,
        scratch_types={
            "ring": ring_types(sizes["stages"], (ROWS, LINE), *[matrix] * together),
            "staged": swizzled(WARPGROUPS, HALF, stored),
        },
        grid=(min(sizes["sms"], rows // ROWS * (outer // columns)),),
        grid_names=("sm",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=tiles.interpret_gpu(),
        kernel_name=name,
    )(group_of_tile.astype(jnp.int32), *lhs, *rhs)


def _kernel(group_of_tile, *refs, lhs, rhs, finish, columns, transposed, ring, staged):
    rows, matrices, outs = refs[:lhs], refs[lhs : lhs + rhs], refs[lhs + rhs :]
    ring = Ring(**ring)
    inner, across = rows[0].shape[1] // LINE, outs[0].shape[1] // columns
    terms = rhs if finish is None else 1  # that follow each other into the same accumulator
    together = rhs // terms
    count = rows[0].shape[0] // ROWS * across

    def each(work):
        @plgpu.nd_loop((count,), collective_axes="sm", init_carry=jnp.int32(0))
        def done(turn, carry):
            tile, column = jax.lax.div(turn.index[0], jnp.int32(across)), jax.lax.rem(turn.index[0], jnp.int32(across))
            group = group_of_tile[tile]
            steps = jnp.where(group < matrices[0].shape[0], inner * terms, 0)
            work(carry, steps, tile * ROWS, column * columns, group)
            return carry + steps

        return done

    def copying():
        def work(first, steps, row, column, group):
            def sources(k, copy):
                for i in range(terms):
                    here = pl.ds((k - i * inner) * LINE, LINE)

                    @pl.when((k >= i * inner) & (k < (i + 1) * inner))
                    def _(i=i, here=here):
                        there = pl.ds(column, columns)
                        part = (group, there, here) if transposed else (group, here, there)
                        mine = matrices if together > 1 else matrices[i : i + 1]
                        copy(rows[min(i, lhs - 1)].at[pl.ds(row, ROWS), here], *(x.at[part] for x in mine))

            ring.fill(first, steps, sources)

        ring.drain(each(work))

    def multiplying(warpgroup):
        def work(first, steps, row, column, group):
            def accumulate(*totals):
                def start(left, *right):
                    for total, matrix in zip(totals, right, strict=True):
                        plgpu.wgmma(total, left.at[half], matrix.transpose((1, 0)) if transposed else matrix)

                ring.multiply(first, steps, start, together)
                return [total[...] for total in totals]

            half = pl.ds(warpgroup * HALF, HALF)
            found = pl.run_scoped(accumulate, *[plgpu.WGMMAAccumulatorRef((HALF, columns), jnp.float32)] * together)
            for out, value in zip(outs, found if finish is None else finish(*found), strict=True):
                _store(value, staged.at[warpgroup], out, row + warpgroup * HALF, column)

        each(work)
        plgpu.wait_smem_to_gmem(0)

    specialized(copying, multiplying)


def _store(value, staged, out, row, column):
    """Writes a tile of registers to ``out[row:, column:]``, through shared memory and as wide as that is."""
    width = staged.shape[1]
    value = value.astype(staged.dtype)
    for first in range(0, value.shape[1], width):
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        staged[...] = value[:, first : first + width]
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(staged, out.at[pl.ds(row, value.shape[0]), pl.ds(column + first, width)])


def transposed_product(
    lhs: Float[Array, "rows inner"],
    rhs: Float[Array, "rows outer"],
    group_sizes: Int[Array, " groups"],
    *,
    dtype: Any,
) -> Float[Array, "groups inner outer"]:
    """lhsᵀ rhs over the rows of each group: the gradient of the matrices. Groups without rows get zeros."""
    inner, outer, groups = lhs.shape[1], rhs.shape[1], len(group_sizes)
    sizes = tiles.lookup("transposed_grouped_matmul")
    columns = tiles.largest_divisor(outer // COLUMNS, sizes["columns"] // COLUMNS) * COLUMNS
    end = jnp.cumsum(group_sizes, dtype=jnp.int32)
    return plgpu.kernel(
        partial(_transposed_kernel, columns=columns),
        out_type=jax.ShapeDtypeStruct((groups, inner, outer), lhs.dtype),
        scratch_types={
            "ring": ring_types(sizes["stages"], (LINE, ROWS), (LINE, columns)),
            "staged": swizzled(WARPGROUPS, HALF, min(columns, sizes["stored"])),
        },
        grid=(min(sizes["sms"], groups * (inner // ROWS) * (outer // columns)),),
        grid_names=("sm",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=tiles.interpret_gpu(),
        kernel_name="transposed_grouped_matmul",
    )(end - group_sizes, group_sizes.astype(jnp.int32), lhs, rhs).astype(dtype)


def _transposed_kernel(start, size, lhs, rhs, out, *, columns, ring, staged):
    ring = Ring(**ring)
    groups, inner, outer = out.shape
    down, across = inner // ROWS, outer // columns

    def each(work):
        @plgpu.nd_loop((groups, down, across), collective_axes="sm", init_carry=jnp.int32(0))
        def done(turn, carry):
            group, i, j = turn.index
            steps = jax.lax.div(size[group], jnp.int32(LINE))
            work(carry, steps, group, i * ROWS, j * columns)
            return carry + steps

        return done

    def copying():
        def work(first, steps, group, row, column):
            begin = pl.multiple_of(start[group], LINE)

            def sources(k, copy):
                here = pl.ds(begin + k * LINE, LINE)
                copy(lhs.at[here, pl.ds(row, ROWS)], rhs.at[here, pl.ds(column, columns)])

            ring.fill(first, steps, sources)

        ring.drain(each(work))

    def multiplying(warpgroup):
        def work(first, steps, group, row, column):
            def accumulate(total):
                half = pl.ds(pl.multiple_of(warpgroup * HALF, HALF), HALF)
                ring.multiply(first, steps, lambda a, b: plgpu.wgmma(total, a.at[:, half].transpose((1, 0)), b))
                return total[...]

            found = pl.run_scoped(accumulate, plgpu.WGMMAAccumulatorRef((HALF, columns), jnp.float32))
            _store(found, staged.at[warpgroup], out.at[group], row + warpgroup * HALF, column)

        each(work)
        plgpu.wait_smem_to_gmem(0)

    specialized(copying, multiplying)
