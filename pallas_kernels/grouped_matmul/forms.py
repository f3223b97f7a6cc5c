"""The forms of the grouped products, with one face: what works on blocks of rows here, what runs on a chip there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from pallas_kernels.backends import choose
from pallas_kernels.grouped_matmul import tpu, xla


class Form(NamedTuple):
    """``products(lhs, rhs, group_sizes, finish)`` and ``transposed_product(lhs, rhs, group_sizes, dtype=…)``."""

    name: str
    products: Callable[..., list[jax.Array]]
    transposed_product: Callable[..., jax.Array]


def form(name: str, block: int) -> Form:
    """The form called ``name``, for groups padded to ``block`` rows, of which "tpu" does not care."""
    if name == "tpu":
        return Form(name, tpu.products, tpu.transposed_product)
    return Form(name, partial(xla.products, block=block), partial(xla.transposed_product, block=block))


def choose_form(kernel: str, backend: str | None, inner: int, outer: int, others: Sequence[str] = ()) -> str:
    """The name of the form for matrices of this shape; raises ValueError as ``backends.choose`` does."""
    why_not: dict[str, Any] = {"tpu": tpu.why_not(inner, outer), "xla": None, **dict.fromkeys(others)}
    return choose(kernel, backend, why_not)
