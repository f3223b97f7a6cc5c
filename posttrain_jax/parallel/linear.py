"""A matrix product on a mesh: tokens stay where they lie, and the matrix is gathered over the axes that split them."""

from __future__ import annotations

from typing import cast

import jax
from jaxtyping import Array, Float

from posttrain_jax.parallel.placement import Axes, along, current, summed, whole

NARROW = 8  # times narrower than its input: a gradient whose transpose costs next to nothing


def linear(
    x: Float[Array, "batch length width"], weight: Float[Array, "width out"], axes: Axes
) -> Float[Array, "batch length out"]:
    """x @ weight, in the format of x; ``axes`` are the names of the weight's.

    An axis of the matrix that mesh axes split which also split tokens is FSDP's: it is gathered, and its gradient
    scattered. Others are tensor parallel: over "out" each device makes some columns, over "width" each adds some terms
    of the sum.
    """
    place = current()
    if place is None:
        return cast(Array, product(x, weight))
    tokens, lying = place.spec(("batch", "length"), x.shape[:2]), place.spec(axes, weight.shape)
    split = along(tokens, 0) + along(tokens, 1)
    gathered, (width, out) = zip(*(_parted(along(lying, axis), split) for axis in (0, 1)), strict=True)

    def local(x, weight):
        weight = weight.astype(x.dtype)
        for axis, names in enumerate(gathered):
            weight = whole(weight, names, axis)
        return summed(cast(Array, product(x, weight)), width)

    rows = tokens + (None,) * (2 - len(tokens))
    into, out_of = jax.P(*rows, width or None), jax.P(*rows, out or None)
    run = jax.shard_map(local, mesh=place.mesh, in_specs=(into, lying), out_specs=out_of, check_vma=False)
    return run(x, weight)


def _parted(names, split):
    """The mesh axes to gather, and those to work along."""
    return (names, ()) if set(names) & set(split) else ((), names)


@jax.custom_vjp
def product(
    x: Float[Array, "batch length width"], weight: Float[Array, "width out"]
) -> Float[Array, "batch length out"]:
    """x @ weight on one device.

    The gradient of the weight is written out as xᵀ @ gradient. JAX would derive (gradientᵀ @ x)ᵀ, for which a compiler
    that wants its operands in rows transposes the gradient of each product instead of the one input they share. A
    gradient much narrower than x, as a router's is, is the cheaper one to transpose.
    """
    return x @ weight.astype(x.dtype)


def _product_forward(x, weight):
    return product(x, weight), (x, weight)


def _product_backward(saved, gradient):
    x, weight = saved
    tokens = (((0, 1), (0, 1)), ((), ()))
    if gradient.shape[-1] * NARROW <= x.shape[-1]:
        d_weight = jax.lax.dot_general(gradient, x, tokens).T
    else:
        d_weight = jax.lax.dot_general(x, gradient, tokens)
    return gradient @ weight.astype(x.dtype).T, d_weight.astype(weight.dtype)


product.defvjp(_product_forward, _product_backward)
