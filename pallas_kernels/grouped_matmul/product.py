"""Products of consecutive groups of rows with one matrix per group, and their gradients."""

from __future__ import annotations

from functools import partial

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul.forms import choose_form, form
from pallas_kernels.grouped_matmul.quantized import Quantized
from pallas_kernels.grouped_matmul.reference import grouped_matmul_definition


def grouped_matmul(
    lhs: Float[Array, "rows inner"],
    rhs: Float[Array, "groups inner outer"] | Quantized,
    group_sizes: Int[Array, " groups"],
    *,
    block: int | None = None,
    backend: str | None = None,
) -> Float[Array, "rows outer"]:
    """Multiplies rows ``offset[g] : offset[g] + group_sizes[g]`` of ``lhs`` with ``rhs[g]``; dropless, no capacity.

    Args:
      lhs: ``[rows, inner]``, rows of one group together, groups in order.
      rhs: ``[groups, inner, outer]``; quantised ones are dequantised in the kernel, and receive no gradient.
      group_sizes: ``[groups]`` int32 row counts; their sum is at most ``rows``. Rows past it are zero in the result.
      block: promise that every group size, and ``rows``, is a multiple of this many rows, without which "xla" is XLA's
        own ragged product; "gpu" needs a multiple of 128.
      backend: "tpu", "gpu" (Pallas), "xla", "ragged" (``lax.ragged_dot``), "definition"; None chooses by the device.

    Raises:
      ValueError: an unknown backend, or one that cannot take the shapes; rows that are no multiple of the block.
    """
    backend = choose_form("grouped_matmul", backend, rhs, lhs.dtype, block, others=("ragged", "definition"))
    if backend == "xla" and not block:
        backend = "ragged"
    if backend in ("tpu", "gpu", "xla"):
        return _product(lhs, rhs, group_sizes, block or 1, backend)
    matrices = rhs.dequantized(lhs.dtype) if isinstance(rhs, Quantized) else rhs
    return (jax.lax.ragged_dot if backend == "ragged" else grouped_matmul_definition)(lhs, matrices, group_sizes)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _product(lhs, rhs, group_sizes, block, backend):
    return form(backend, block).products([lhs], [rhs], group_sizes, lambda x: [x])[0]


def _forward(lhs, rhs, group_sizes, block, backend):
    way = form(backend, block, training=True)
    return way.products([lhs], [rhs], group_sizes, lambda x: [x])[0], (lhs, rhs, group_sizes)


def _backward(block, backend, saved, gradient):
    lhs, rhs, group_sizes = saved
    way = form(backend, block, training=True)
    if isinstance(rhs, Quantized):
        matrices, d_rhs = rhs.dequantized(lhs.dtype), None
    else:
        matrices, d_rhs = rhs, way.transposed_product(lhs, gradient, group_sizes, dtype=rhs.dtype)
    return way.products([gradient], [matrices], group_sizes, lambda x: [x], transposed=True)[0], d_rhs, None


_product.defvjp(_forward, _backward)
