"""The statistics and the gradient in plain jnp: the logits of some columns of the batch at a time."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LOGITS_AT_ONCE = 1 << 24  # on each device, of which a few float32 copies live at a time: 64 MiB each

PerToken = Float[Array, "batch length"]


def statistics(
    hidden: Float[Array, "batch length hidden"],
    head: Float[Array, "hidden vocab"],
    targets: Int[Array, "batch length"],
    inverse: PerToken,
    chunk: int | None,
) -> tuple[tuple[PerToken, PerToken, PerToken], Float[Array, "batch length vocab"] | None]:
    """log Σ exp z, z of the target (0 if it is none of these words) and the entropy; and the logits, if few."""

    def some(piece):
        hidden, targets, inverse = piece
        logits = _logits(hidden, head, inverse)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        # A masked sum, not a gather, which is slow where the vocabulary is split over devices.
        chosen = jnp.sum(jnp.where(_is_target(logits, targets), logits, 0.0), axis=-1)
        surprise = normaliser[..., None] - logits
        found = normaliser, chosen, jnp.sum(jnp.exp(-surprise) * surprise, axis=-1)
        return found, logits if columns == length else None

    length, columns = targets.shape[1], _columns(targets.shape, head, chunk)
    if columns == length:
        return some((hidden, targets, inverse))
    cut = partial(_cut, columns=columns)
    found, _ = jax.lax.map(some, (cut(hidden), cut(targets), cut(inverse)))
    normaliser, chosen, entropy = (_back(x, length) for x in found)
    return (normaliser, chosen, entropy), None


def gradient(
    hidden: Float[Array, "batch length hidden"],
    head: Float[Array, "hidden vocab"],
    targets: Int[Array, "batch length"],
    inverse: PerToken,
    normaliser: PerToken,
    scale: PerToken,
    logits: Float[Array, "batch length vocab"] | None,
    chunk: int | None,
) -> tuple[Float[Array, "batch length hidden"], Float[Array, "hidden vocab"]]:
    """The gradients of ``hidden`` and ``head`` for d log p = ``scale`` · T, from the logits or formed again."""

    def some(d_head, piece):
        hidden, targets, inverse, normaliser, scale = piece
        z = _logits(hidden, head, inverse) if logits is None else logits
        d_logits = (_is_target(z, targets) - jnp.exp(z - normaliser[..., None])) * scale[..., None]
        d_hidden = d_logits @ head.astype(jnp.float32).T
        return d_head + jnp.einsum("btd,btv->dv", hidden.astype(jnp.float32), d_logits), d_hidden

    length, columns = targets.shape[1], _columns(targets.shape, head, chunk)
    pieces = hidden, targets, inverse, normaliser, scale
    if columns == length:
        d_head, d_hidden = some(0.0, pieces)
        return d_hidden, d_head
    pieces = jax.tree.map(partial(_cut, columns=columns), pieces)
    d_head, d_hidden = jax.lax.scan(some, jnp.zeros(head.shape, jnp.float32), pieces)
    return _back(d_hidden, length), d_head


def _columns(shape, head, chunk):
    chunk = chunk or LOGITS_AT_ONCE * jax.device_count() // head.shape[1]
    return min(max(chunk // shape[0], 1), shape[1])


def _cut(x, columns):
    """``[batch, length, …]`` to ``[pieces, batch, columns, …]``; rows stay on their devices."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % columns)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, columns, *x.shape[2:]), 1, 0)


def _back(x, length):
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :length]


def _logits(hidden, head, inverse):
    return hidden.astype(jnp.float32) @ head.astype(jnp.float32) * inverse[..., None]


def _is_target(logits, targets):
    return jnp.arange(logits.shape[-1]) == targets[..., None]
