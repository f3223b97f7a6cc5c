"""The forms of the grouped products, with one face: what works on blocks of rows here, what runs on a chip there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from pallas_kernels.backends import choose
from pallas_kernels.grouped_matmul import even, gpu, tpu, xla


class Form(NamedTuple):
    """``products(lhs, rhs, group_sizes, finish)`` and ``transposed_product(lhs, rhs, group_sizes, dtype=…)``."""

    name: str
    products: Callable[..., list[jax.Array]]
    transposed_product: Callable[..., jax.Array]


LEAST_BLOCK = {"gpu": gpu.ROWS}  # rows that groups must be padded to, where a form cares


def form(name: str, block: int, *, training: bool = False) -> Form:
    """The form called ``name``, for groups padded to ``block`` rows.

    In ``training`` the last bits of a row may depend on how many rows its group has, where that is faster.
    """
    if name in ("tpu", "gpu"):
        native: Any = {"tpu": tpu, "gpu": gpu}[name]
        return Form(name, native.products, native.transposed_product)
    return Form(name, partial(xla.products, block=block, large=training), partial(xla.transposed_product, block=block))


def even_form(groups: int) -> Form:
    """For training on a CPU, with the owners of blocks instead of group sizes."""
    return Form("even", even.products, partial(even.transposed_product, groups=groups))


def choose_form(
    kernel: str, backend: str | None, matrices: Any, dtype: Any, block: int | None, others: Sequence[str] = ()
) -> str:
    """The name of the form for these matrices; raises ValueError as ``backends.choose`` does.

    Args:
      matrices: ``[groups, inner, outer]``, plain or quantised.
      dtype: of the rows.
      block: what groups are, or can be, padded to; None if nothing is promised.
    """
    why_not: dict[str, Any] = {
        "tpu": tpu.why_not(*matrices.shape[1:]),
        "gpu": gpu.why_not(matrices, dtype, block),
        "xla": None,
        **dict.fromkeys(others),
    }
    return choose(kernel, backend, why_not)
