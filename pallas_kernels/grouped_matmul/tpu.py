"""Grouped products on a TPU core.

A tile of rows that two groups share is visited once for each. Inside a visit, strips of rows that hold nothing of the
group are skipped, so tiles can be large, as the memory likes them, while little is computed in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import tiles
from pallas_kernels.backends import exact
from pallas_kernels.grouped_matmul.quantized import Quantized
from pallas_kernels.grouped_matmul.visits import visits

LANES = 128
Matrices = Float[Array, "groups inner outer"] | Quantized


def why_not(inner: int, outer: int) -> str | None:
    """Why matrices of this shape cannot run here, or None."""
    wrong = {name: size for name, size in (("inner", inner), ("outer", outer)) if size % LANES}
    return " and ".join(f"{n}={s} is no multiple of the {LANES} lanes" for n, s in wrong.items()) or None


def products(
    lhs: Sequence[Float[Array, "rows inner"]],
    rhs: Sequence[Matrices],
    group_sizes: Int[Array, " groups"],
    finish: Callable[..., Sequence[jax.Array]] | None,
    outputs: int = 1,
    *,
    transposed: bool = False,
    beside: Sequence[Float[Array, "rows width"]] = (),
    sums: int = 0,
    name: str = "grouped_matmul",
) -> list[Float[Array, "rows width"]]:
    """``finish(lhs[0][r] @ rhs[0][g], lhs[1][r] @ rhs[1][g], …, beside[0][r], …)`` for each row r of each group g.

    Args:
      lhs: rows, one array for all matrices or one for each.
      rhs: ``[groups, inner, outer]`` each, or with ``transposed`` ``[groups, outer, inner]``.
      group_sizes: their sum may be less than the rows; the rest is zero in the result.
      finish: of tiles, those of products in float32, to ``outputs`` tiles and ``sums`` tiles to be summed over columns;
        None for the sum of all products.
      beside: what else ``finish`` needs of a row: ``[rows, outer]``, or ``[rows, 1]``.

    Returns:
      ``[rows, outer]`` in the format of the rows, and float32 sums ``[rows, 1]``.
    """
    rows, inner = lhs[0].shape
    outer = rhs[0].shape[1 if transposed else 2]
    dtype = lhs[0].dtype
    sizes = tiles.lookup("grouped_matmul")
    tile = min(sizes["rows"], -(-rows // sizes["strip"]) * sizes["strip"])
    strip = min(sizes["strip"], tile)
    columns = _columns(sizes["bytes"], tile, inner, outer, lhs, rhs, outputs + len(beside))
    matrices = len(group_sizes)
    # the rows past the last group are a group of their own, whose product is zero
    rest = rows - group_sizes.sum(keepdims=True)
    walk = visits(jnp.concatenate([group_sizes, rest]), rows, tile, empty=False)

    row_block = pl.BlockSpec((tile, inner), lambda n, v, t, *_: (t[v], 0))
    out_block = pl.BlockSpec((tile, columns), lambda n, v, t, *_: (t[v], n))
    one_block = pl.BlockSpec((tile, 1), lambda n, v, t, *_: (t[v], 0))
    sum_block = pl.BlockSpec((tile, LANES), lambda n, v, t, *_: (t[v], n))
    flat_rhs, structure = jax.tree.flatten([_widened(x) if isinstance(x, Quantized) else x for x in rhs])
    specs = [_matrix_block(part, rhs[0].shape, columns, transposed, matrices) for part in flat_rhs]
    block = (columns, inner) if transposed else (inner, columns)
    plain = [pltpu.VMEM(block, dtype) for matrix in rhs if isinstance(matrix, Quantized)]
    itemsize = dtype.itemsize
    moved = (outer // columns) * sum(x.size for x in lhs) * itemsize + rows * outer * outputs * itemsize
    moved += sum(x.size * x.dtype.itemsize for x in beside) + sums * rows * outer // columns * LANES * 4
    found = pl.pallas_call(
        partial(
            _kernel,
            rows=len(lhs),
            structure=structure,
            beside=len(beside),
            sums=sums,
            finish=finish or (lambda *found: [sum(found)]),
            transposed=transposed,
            strip=strip,
            last=matrices,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(outer // columns, walk.count),
            in_specs=[row_block] * len(lhs) + specs + [one_block if x.shape[1] == 1 else out_block for x in beside],
            out_specs=[out_block] * outputs + [sum_block] * sums,
            scratch_shapes=plain,
        ),
        out_shape=[jax.ShapeDtypeStruct((rows, outer), dtype)] * outputs
        + [jax.ShapeDtypeStruct((rows, outer // columns * LANES), jnp.float32)] * sums,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=sizes["limit"]
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * inner * outer * len(rhs),
            bytes_accessed=moved + sum(x.size * x.dtype.itemsize for x in flat_rhs),
            transcendentals=rows * outer if outputs > 1 or len(rhs) > 1 else 0,
        ),
        interpret=tiles.interpret(),
        name=name,
    )(walk.tile, walk.group, walk.start, walk.end, *lhs, *flat_rhs, *beside)
    return [x if i < outputs else x[:, ::LANES].sum(axis=1, keepdims=True) for i, x in enumerate(found)]


def transposed_product(
    lhs: Float[Array, "rows inner"],
    rhs: Float[Array, "rows outer"],
    group_sizes: Int[Array, " groups"],
    *,
    dtype: Any,
) -> Float[Array, "groups inner outer"]:
    """lhsᵀ rhs over the rows of each group: the gradient of the matrices. Groups without rows get zeros."""
    (rows, inner), outer = lhs.shape, rhs.shape[1]
    sizes = tiles.lookup("transposed_grouped_matmul")
    tile = min(sizes["rows"], -(-rows // sizes["strip"]) * sizes["strip"])
    strip = min(sizes["strip"], tile)
    across = tiles.largest_divisor(inner // LANES, sizes["inner"] // LANES) * LANES
    columns = tiles.largest_divisor(outer // LANES, sizes["outer"] // LANES) * LANES
    walk = visits(group_sizes, rows, tile, empty=True)
    read = (outer // columns) * lhs.size + (inner // across) * rhs.size
    return pl.pallas_call(
        partial(_transposed_kernel, strip=strip, rows=rows),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(inner // across, outer // columns, walk.count),
            in_specs=[
                pl.BlockSpec((tile, across), lambda k, n, v, t, *_: (t[v], k)),
                pl.BlockSpec((tile, columns), lambda k, n, v, t, *_: (t[v], n)),
            ],
            out_specs=pl.BlockSpec((1, across, columns), lambda k, n, v, t, g, *_: (g[v], k, n)),
            scratch_shapes=[pltpu.VMEM((across, columns), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((len(group_sizes), inner, outer), dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=sizes["bytes"]
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * inner * outer,
            bytes_accessed=read * lhs.dtype.itemsize + len(group_sizes) * inner * outer * jnp.dtype(dtype).itemsize,
            transcendentals=0,
        ),
        interpret=tiles.interpret(),
        name="transposed_grouped_matmul",
    )(walk.tile, walk.group, walk.start, walk.end, lhs, rhs)


def _columns(budget, tile, inner, outer, lhs, rhs, outputs):
    """The widest tile of columns whose blocks, each held twice, fit the budget of VMEM."""
    itemsize = lhs[0].dtype.itemsize
    for columns in (c * LANES for c in range(outer // LANES, 0, -1)):
        matrices = sum(inner * columns * (x.dtype.itemsize + isinstance(x, Quantized) * itemsize / 2) for x in rhs)
        held = 2 * (len(lhs) * tile * inner * itemsize + matrices + outputs * tile * columns * itemsize)
        worked = 4 * len(rhs) * tile * columns
        if outer % columns == 0 and held + worked <= budget:
            return columns
    raise ValueError(
        f"grouped_matmul: rows of inner={inner} numbers do not fit {budget} bytes of VMEM; backend='xla' can run this"
    )


def _matrix_block(part, shape, columns, transposed, matrices):
    """The block of a ``[groups, rows, columns]`` array or of its coarser scales, for ``columns`` of the product."""
    _, rows, cols = part.shape
    if transposed:
        block = (1, max(columns * rows // shape[1], 1), cols)
        return pl.BlockSpec(block, lambda n, v, t, g, *_: (jnp.minimum(g[v], matrices - 1), n, 0))
    block = (1, rows, max(columns * cols // shape[2], 1))
    return pl.BlockSpec(block, lambda n, v, t, g, *_: (jnp.minimum(g[v], matrices - 1), 0, n))


def _kernel(tile, group, start, end, *refs, rows, structure, beside, sums, finish, transposed, strip, last):
    lhs, refs = refs[:rows], refs[rows:]
    rhs, refs = jax.tree.unflatten(structure, refs[: structure.num_leaves]), refs[structure.num_leaves :]
    beside, refs = refs[:beside], refs[beside:]
    packed = [matrix for matrix in rhs if isinstance(matrix, Quantized)]
    outputs, plain = refs[: len(refs) - len(packed)], refs[len(refs) - len(packed) :]
    visit = pl.program_id(1)
    mine = group[visit]
    first = tile[visit] * lhs[0].shape[0]

    @pl.when((visit == 0) | (group[jnp.maximum(visit - 1, 0)] != mine))
    def _():
        for matrix, unpacked in zip(packed, plain, strict=True):
            _unpack(matrix, unpacked)

    held = iter(plain)
    rhs = [next(held) if isinstance(matrix, Quantized) else matrix.at[0] for matrix in rhs]
    precision = exact(lhs[0].dtype)
    dims = (((1,), (1 if transposed else 0,)), ((), ()))
    for s in range(lhs[0].shape[0] // strip):
        here = pl.ds(s * strip, strip)
        low, high = start[mine] - first - s * strip, end[mine] - first - s * strip

        @pl.when((high > 0) & (low < strip))
        def _(here=here, low=low, high=high):
            index = jax.lax.broadcasted_iota(jnp.int32, (strip, 1), 0)
            member = (index >= low) & (index < high)

            @pl.when(mine < last)
            def _():
                found = finish(
                    *(
                        jax.lax.dot_general(
                            lhs[min(i, len(lhs) - 1)][here, :],
                            matrix[...],
                            dims,
                            precision=precision,
                            preferred_element_type=jnp.float32,
                        )
                        for i, matrix in enumerate(rhs)
                    ),
                    *(x[here, :] for x in beside),
                )
                if sums:
                    each = [x.sum(axis=1, keepdims=True) for x in found[-sums:]]
                    found = [*found[:-sums], *(jnp.broadcast_to(x, (strip, LANES)) for x in each)]
                for out, value in zip(outputs, found, strict=True):
                    out[here, :] = jnp.where(member, value.astype(out.dtype), out[here, :])

            @pl.when(mine == last)
            def _():
                for out in outputs:
                    out[here, :] = jnp.where(member, jnp.zeros_like(out[here, :]), out[here, :])


def _widened(matrix):
    """One scale for each column, since a block of columns may be narrower than a block of entries."""
    width = matrix.shape[2] // matrix.scales.shape[2]
    return matrix._replace(scales=jnp.repeat(matrix.scales, width, axis=2)) if width > 1 else matrix


def _unpack(matrix, unpacked):
    """Dequantises a strip at a time, so that no more than one is held in registers."""
    inner = unpacked.shape[0]
    height = inner // matrix.scales.shape[1]
    strip = 2 * LANES if inner % (2 * LANES) == 0 else LANES
    for first in range(0, inner, strip):
        rows, blocks = pl.ds(first, strip), pl.ds(first // height, strip // height)
        part = Quantized(matrix.values[0, rows, :], matrix.scales[0, blocks, :])
        unpacked[rows, :] = part.dequantized(unpacked.dtype)


def _transposed_kernel(tile, group, start, end, lhs, rhs, out, total, *, strip, rows):
    visit, visited = pl.program_id(2), pl.num_programs(2)
    mine = group[visit]
    first = tile[visit] * lhs.shape[0]

    @pl.when((visit == 0) | (group[jnp.maximum(visit - 1, 0)] != mine))
    def _():
        total[...] = jnp.zeros_like(total)

    precision = exact(lhs.dtype)
    for s in range(lhs.shape[0] // strip):
        here = pl.ds(s * strip, strip)
        low, high = start[mine] - first - s * strip, end[mine] - first - s * strip

        @pl.when((high > 0) & (low < strip) & (high > low))
        def _(here=here, low=low, high=high):
            index = jax.lax.broadcasted_iota(jnp.int32, (strip, 1), 0)
            member = (index >= low) & (index < high)
            a, b = (jnp.where(member, x[here, :], jnp.zeros_like(x[here, :])) for x in (lhs, rhs))
            total[...] += jax.lax.dot_general(
                a, b, (((0,), (0,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
            )

    @pl.when((visit == visited - 1) | (group[jnp.minimum(visit + 1, visited - 1)] != mine))
    def _():
        out[0] = total[...].astype(out.dtype)
