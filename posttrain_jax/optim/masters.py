"""Float32 copies of weights that are kept in a shorter format."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class MastersState(NamedTuple):
    """Float32 copies of the weights in shorter formats (`optax.MaskedNode` for the others), and the inner state."""

    copies: Any
    inner: Any


def with_masters(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer, moving float32 copies; weights in shorter formats are these, rounded.

    A step of a thousandth of a weight is lost in bfloat16, which has eight bits. The update that is returned is in
    float32 and brings each weight exactly to its rounded master when `optax.apply_updates` adds it.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def long(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def masters(params, copies):
        return jax.tree.map(lambda w, copy: w if isinstance(copy, optax.MaskedNode) else copy, params, copies)

    def copied(params, masters):
        return jax.tree.map(lambda w, m: optax.MaskedNode() if w.dtype == jnp.float32 else m, params, masters)

    def init(params):
        return MastersState(copied(params, long(params)), optimizer.init(long(params)))

    def update(updates, state, params=None, **extra):
        before = masters(params, state.copies)
        changes, inner = optimizer.update(long(updates), state.inner, before, **extra)
        after = optax.apply_updates(before, changes)
        steps = jax.tree.map(lambda new, w: new.astype(w.dtype).astype(jnp.float32) - w, after, params)
        return steps, MastersState(copied(params, after), inner)

    return optax.GradientTransformationExtraArgs(init, update)
