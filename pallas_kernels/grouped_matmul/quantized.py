"""Matrices kept in 4 or 8 bits with a scale for every block of entries."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


class Quantized(NamedTuple):
    """Entry (i, j) is values[i, j] · scales[i // height, j // width], for blocks of height × width entries.

    Attributes:
      values: ``[…, inner, outer]`` int4, int8 or float8_e4m3fn.
      scales: ``[…, inner / height, outer / width]``, bfloat16 or float32. INT4 as Kimi K2 has it: height 32, width 1;
        FP8 as released: 128 × 128.
    """

    values: Shaped[Array, "*leading inner outer"]
    scales: Float[Array, "*leading rows columns"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrices."""
        return self.values.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Of the entries as they are kept."""
        return self.values.dtype

    def dequantized(self, dtype: jnp.dtype) -> Float[Array, "*leading inner outer"]:
        """The matrices in ``dtype``.

        Raises:
          ValueError: scales that do not divide the entries evenly.
        """
        values, scales = self.values, self.scales
        if any(size % blocks for size, blocks in zip(values.shape[-2:], scales.shape[-2:], strict=True)):
            raise ValueError(f"scales of {scales.shape} do not divide values of {values.shape} evenly")
        height, width = (size // blocks for size, blocks in zip(values.shape[-2:], scales.shape[-2:], strict=True))
        spread = scales.astype(jnp.float32)
        if width > 1:
            spread = jnp.broadcast_to(spread[..., None], (*spread.shape, width)).reshape(*spread.shape[:-1], -1)
        blocks = values.astype(jnp.float32).reshape(*values.shape[:-2], -1, height, values.shape[-1])
        return (blocks * spread[..., :, None, :]).reshape(values.shape).astype(dtype)
