"""FLOPs of products in compiled HLO, where a batched product is a convolution."""

from __future__ import annotations

import math
import re

import numpy as np

from posttrain_jax.planning.hlo import Computation, Instruction, Module


def product_flops(module: Module, computation: Computation, one: Instruction) -> float:
    """Of the matrix products in an instruction of a computation, those of a fusion inside it: two a multiply-add."""
    if one.opcode == "dot":
        return _dot(computation, one)
    if one.opcode == "convolution":
        return _convolution(computation, one)
    if one.opcode == "custom-call" and "gemm" in one.attributes:
        return _library(computation, one)
    if one.opcode in ("fusion", "async-start"):
        return sum(product_flops(module, inner, each) for inner in module.called(one) for each in inner.instructions)
    return 0.0


def _dims(computation: Computation, name: str) -> tuple[int, ...]:
    return computation.by_name[name].arrays[0].dims


def _dot(computation: Computation, one: Instruction) -> float:
    left = _dims(computation, one.operands[0])
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
    summed = math.prod(left[int(d)] for d in found[1].split(",") if d) if found else 1
    return 2.0 * math.prod(one.arrays[0].dims) * summed


def _library(computation: Computation, one: Instruction) -> float:
    """A product by a GPU's library, whose configuration says which dimensions it sums over."""
    found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.attributes)
    if found is None:
        return 0.0
    left = _dims(computation, one.operands[0])
    summed = math.prod(left[int(d)] for d in re.findall(r"\d+", found[1]))
    return 2.0 * math.prod(one.arrays[0].dims) * summed


def _convolution(computation: Computation, one: Instruction) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    if labels is None:
        return 0.0
    left, right = (_dims(computation, name) for name in one.operands[:2])
    out = one.arrays[0].dims
    spatial = sorted(label for label in labels[1] if label.isdigit())
    window = {
        name: value.split("x")
        for name, value in re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", one.attributes) or [""])[0])
    }
    pairs = 1
    for place, label in enumerate(spatial):
        sizes = left[labels[1].index(label)], right[labels[2].index(label)], out[labels[3].index(label)]
        pairs *= _pairs(*sizes, *(_of(window, key, place) for key in ("stride", "lhs_dilate", "rhs_dilate", "pad")))
    batch, features = out[labels[3].index("b")], out[labels[3].index("f")]
    inputs = right[labels[2].index("i")]
    groups = re.search(r"batch_group_count=(\d+)", one.attributes)
    return 2.0 * batch * features * inputs * pairs / (int(groups[1]) if groups else 1)


def _of(window: dict[str, list[str]], key: str, place: int) -> int:
    """A number of a window's dimension; of its padding the lower."""
    default = "0" if key == "pad" else "1"
    text = window.get(key, [])
    return int((text[place] if place < len(text) else default).partition("_")[0] or default)


def _pairs(source: int, kernel: int, out: int, stride: int, lhs_dilate: int, rhs_dilate: int, low: int) -> int:
    """(output, kernel) positions that meet an input rather than padding or a hole."""
    if kernel == 1 and stride == 1 and lhs_dilate == 1 and low == 0:
        return out
    places = np.arange(out)[:, None] * stride + np.arange(kernel) * rhs_dilate - low
    inside = (places >= 0) & (places <= (source - 1) * lhs_dilate) & (places % lhs_dilate == 0)
    return int(inside.sum())
