"""INT4 weights in groups along the input, as Kimi K2-Thinking is released (compressed-tensors, pack-quantized).

    s = max |w| / 7 over the 32 weights of a group,   q = round(w / s) in [-8, 7],   w ≈ q · s

Eight values share a word of 32 bits, the first in the lowest bits, stored as q + 8. Only the weights are quantised.
Works on NumPy and JAX arrays alike, over any leading axes.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import Quantized

GROUP = 32
LARGEST = 7
SMALLEST_SCALE = 1e-5  # of a group of zeros
_IN_A_WORD = 8


def quantize(
    weight: Float[Any, "*leading outputs inputs"], group: int = GROUP, scale_dtype: Any = jnp.bfloat16
) -> tuple[Int[Any, "*leading outputs inputs"], Float[Any, "*leading outputs groups"]]:
    """``(q, s)``: int8 in [-8, 7], half-way cases to the even neighbour, and one scale a group.

    Args:
      weight: the matrix, ``[out, in]``.
      group: inputs that share a scale; divides their number.
      scale_dtype: the format scales are stored in. Values are rounded with the scale as stored.

    Raises:
      ValueError: the inputs are not whole groups.
    """
    xp = weight.__array_namespace__()
    grouped = _grouped(weight.astype(xp.float32), group)
    scale = xp.maximum(xp.max(xp.abs(grouped), axis=-1) / LARGEST, xp.float32(SMALLEST_SCALE)).astype(scale_dtype)
    q = xp.clip(xp.round(grouped / scale.astype(xp.float32)[..., None]), -LARGEST - 1, LARGEST)
    return q.reshape(weight.shape).astype(xp.int8), scale


def dequantize(
    q: Int[Any, "*leading outputs inputs"], scale: Float[Any, "*leading outputs groups"], dtype: Any = jnp.bfloat16
) -> Float[Any, "*leading outputs inputs"]:
    """The weights in ``dtype``."""
    xp = q.__array_namespace__()
    grouped = _grouped(q.astype(xp.float32), q.shape[-1] // scale.shape[-1])
    return (grouped * scale.astype(xp.float32)[..., None]).reshape(q.shape).astype(dtype)


def pack(q: Int[Any, "*leading outputs inputs"]) -> Int[Any, "*leading outputs words"]:
    """Eight values a word of int32; the inputs are filled up with zeros to whole words."""
    xp = q.__array_namespace__()
    fill = [(0, 0)] * (q.ndim - 1) + [(0, -q.shape[-1] % _IN_A_WORD)]
    nibbles = (xp.pad(q, fill).astype(xp.int32) + 8).astype(xp.uint32)
    places = xp.arange(_IN_A_WORD, dtype=xp.uint32) * 4
    words = xp.sum(_grouped(nibbles, _IN_A_WORD) << places, axis=-1, dtype=xp.uint32)
    return words.view(xp.int32)


def unpack(packed: Int[Any, "*leading outputs words"], inputs: int) -> Int[Any, "*leading outputs inputs"]:
    """The int8 values in [-8, 7] of the first ``inputs`` places."""
    xp = packed.__array_namespace__()
    places = xp.arange(_IN_A_WORD, dtype=xp.uint32) * 4
    nibbles = (packed.view(xp.uint32)[..., None] >> places) & xp.uint32(15)
    values = nibbles.astype(xp.int8) - xp.int8(8)
    return values.reshape(*packed.shape[:-1], packed.shape[-1] * _IN_A_WORD)[..., :inputs]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def fake_quantize(
    weight: Float[Array, "*leading outputs inputs"], group: int = GROUP
) -> Float[Array, "*leading outputs inputs"]:
    """Exactly what the quantised weights compute with, in ``weight``'s format; its gradient passes unchanged.

    Quantisation-aware training with the straight-through estimator (arXiv 1308.3432).
    """
    return dequantize(*quantize(weight, group), dtype=weight.dtype)


fake_quantize.defvjp(lambda weight, group: (fake_quantize(weight, group), None), lambda group, _, gradient: (gradient,))


def quantize_experts(weight: Float[Array, "*leading inputs outputs"], group: int = GROUP) -> Quantized:
    """Matrices that lie as our experts' do, inputs first, in the form that `pallas_kernels` multiplies with."""
    q, scale = quantize(weight.swapaxes(-1, -2), group)
    return Quantized(q.swapaxes(-1, -2).astype(jnp.int4), scale.swapaxes(-1, -2))


def fake_quantized_experts(
    weight: Float[Array, "*leading inputs outputs"], group: int = GROUP
) -> Float[Array, "*leading inputs outputs"]:
    """`fake_quantize` of matrices with inputs first: what `quantize_experts` computes with."""
    return jnp.swapaxes(fake_quantize(weight.swapaxes(-1, -2), group), -1, -2)


def _grouped(values: Any, group: int) -> Any:
    if group < 1 or values.shape[-1] % group:
        raise ValueError(f"{values.shape[-1]} inputs are not whole groups of {group}")
    return values.reshape(*values.shape[:-1], values.shape[-1] // group, group)
