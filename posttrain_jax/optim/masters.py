"""Float32 copies of weights that are kept in a shorter format."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class MastersState(NamedTuple):
    """The float32 weights, and the state of the optimizer that moves them."""

    weights: Any
    inner: Any


def with_masters(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer, moving float32 copies; the weights are these, rounded.

    A step of 1e-4 of a weight is lost in bfloat16, which has eight bits. The update that is returned is in float32 and
    brings each weight exactly to its rounded master when `optax.apply_updates` adds it.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def long(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params):
        masters = long(params)
        return MastersState(masters, optimizer.init(masters))

    def update(updates, state, params=None, **extra):
        changes, inner = optimizer.update(long(updates), state.inner, state.weights, **extra)
        masters = optax.apply_updates(state.weights, changes)
        changes = jax.tree.map(lambda new, w: new.astype(w.dtype).astype(jnp.float32) - w, masters, params)
        return changes, MastersState(masters, inner)

    return optax.GradientTransformationExtraArgs(init, update)
