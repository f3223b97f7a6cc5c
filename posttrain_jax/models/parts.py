"""The small parts every layer is made of: named parameters, RMSNorm, the matrix product."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posttrain_jax.parallel import linear as parallel


def parameter(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], *, stddev: float, dtype: jnp.dtype
) -> nnx.Param:
    """A normally distributed weight that carries the logical name of each of its axes."""
    value = stddev * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value.astype(dtype), logical_axes=axes)


def constant(value: float, shape: tuple[int, ...], axes: tuple[str | None, ...], *, dtype: jnp.dtype) -> nnx.Param:
    """A weight that starts at one value, with the logical names of its axes."""
    return nnx.Param(jnp.full(shape, value, dtype), logical_axes=axes)


def rms_norm(x: Float[Array, "... width"], scale: Float[Array, " width"], eps: float) -> Float[Array, "... width"]:
    """x / rms(x) * scale, computed in float32 and returned in the format of x (Zhang & Sennrich 2019, eq. 4)."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * inverse).astype(x.dtype) * scale.astype(x.dtype)


def linear(x: Float[Array, "batch length width"], weight: nnx.Param) -> Float[Array, "batch length out"]:
    """x @ weight, in the format of x, wherever the weight's named axes lie."""
    return parallel.linear(x, weight[...], weight.logical_axes[-2:])
