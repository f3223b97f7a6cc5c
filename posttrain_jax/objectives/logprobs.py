"""Log-probability of chosen tokens, and the entropy they were chosen from, straight from hidden states."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LOGITS_AT_ONCE = 1 << 24  # on each device, of which a few float32 copies live at a time: 64 MiB each


def token_logprobs(
    hidden: Float[Array, "batch length hidden"],
    head: Float[Array, "hidden vocab"],
    targets: Int[Array, "batch length"],
    *,
    temperature: Float[Array, "batch length"] | float = 1.0,
    chunk: int | None = None,
) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
    """log softmax(hidden · head / temperature)[targets] and the entropy of that softmax, both in float32 (nats).

    Logits are formed for some columns of the batch at a time and formed again in the backward pass, so
    ``[batch, length, vocab]`` never exists for large vocabularies. With p the softmax, e the target and g the
    gradient, the backward pass is

        d hidden = g/T (e - p) headᵀ,   d head = hiddenᵀ g/T (e - p)

    No gradient flows through the entropy.

    Args:
      temperature: T, for all tokens or for each.
      chunk: tokens whose logits exist at one time; by default 16 million logits' worth on each device.
    """
    batch, length = targets.shape
    chunk = chunk or LOGITS_AT_ONCE * jax.device_count() // head.shape[1]
    columns = min(max(chunk // batch, 1), length)
    inverse = jnp.broadcast_to(1.0 / jnp.asarray(temperature, jnp.float32), targets.shape)
    cut = partial(_cut, columns=columns)
    logprobs, entropy = _each(cut(hidden), head, cut(targets), cut(inverse))
    back = lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :length]  # noqa: E731
    return back(logprobs), back(entropy)


def _cut(x, columns):
    """``[batch, length, …]`` to ``[pieces, batch, columns, …]``; rows stay on their devices."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % columns)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, columns, *x.shape[2:]), 1, 0)


@jax.custom_vjp
def _each(hidden, head, targets, inverse):
    return _each_forward(hidden, head, targets, inverse)[0]


def _each_forward(hidden, head, targets, inverse):
    def some(piece):
        hidden, targets, inverse = piece
        logits = _logits(hidden, head, inverse)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        # A masked sum, not a gather, which is slow where the vocabulary is split over devices.
        chosen = jnp.sum(jnp.where(_is_target(logits, targets), logits, 0.0), axis=-1)
        surprise = normaliser[..., None] - logits
        found = chosen - normaliser, jnp.sum(jnp.exp(-surprise) * surprise, axis=-1)
        return found, normaliser, logits if whole else None

    whole = len(targets) == 1  # then the logits are kept, not formed again
    found, normaliser, logits = _over_pieces(some, (hidden, targets, inverse))
    return found, (hidden, head, targets, inverse, normaliser, logits)


def _each_backward(saved, gradients):
    hidden, head, targets, inverse, normaliser, logits = saved

    def some(d_head, piece):
        hidden, targets, inverse, normaliser, logits, gradient = piece
        logits = _logits(hidden, head, inverse) if logits is None else logits
        d_logits = _is_target(logits, targets) - jnp.exp(logits - normaliser[..., None])
        d_logits = d_logits * (gradient * inverse)[..., None]
        d_hidden = (d_logits @ head.astype(jnp.float32).T).astype(hidden.dtype)
        return d_head + jnp.einsum("btd,btv->dv", hidden.astype(jnp.float32), d_logits), d_hidden

    pieces = hidden, targets, inverse, normaliser, logits, gradients[0]
    if len(targets) == 1:
        d_head, d_hidden = some(0.0, jax.tree.map(lambda x: x[0], pieces))
        d_hidden = d_hidden[None]
    else:
        d_head, d_hidden = jax.lax.scan(some, jnp.zeros(head.shape, jnp.float32), pieces)
    return d_hidden, d_head.astype(head.dtype), None, None


_each.defvjp(_each_forward, _each_backward)


def _logits(hidden, head, inverse):
    return hidden.astype(jnp.float32) @ head.astype(jnp.float32) * inverse[..., None]


def _is_target(logits, targets):
    return jnp.arange(logits.shape[-1]) == targets[..., None]


def _over_pieces(some, pieces):
    if len(pieces[0]) == 1:
        return jax.tree.map(lambda x: x[None], some(jax.tree.map(lambda x: x[0], pieces)))
    return jax.lax.map(some, pieces)
