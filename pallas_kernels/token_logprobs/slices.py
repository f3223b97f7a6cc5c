"""The gradient by slices of the vocabulary, for chips whose matrix units XLA feeds well.

For a slice the logits are formed again and turned into their gradients where they leave the matrix unit; these, in the
format of ``hidden``, meet the slice of the head and the hidden states in two more products.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.backends import exact

LANES = 128  # that a slice is a multiple of
SLICE_BYTES = 1 << 27  # of the gradients of logits that exist at one time

PerToken = Float[Array, "batch length"]


def slice_columns(tokens: int, vocab: int, itemsize: int) -> int:
    """Words whose logits' gradients exist at one time in the backward pass: slices as even as lanes allow."""
    most = max(SLICE_BYTES // (tokens * itemsize) // LANES, 1) * LANES
    slices = -(-vocab // most)
    return min(-(-vocab // (slices * LANES)) * LANES, vocab)


def gradient(
    hidden: Float[Array, "batch length hidden"],
    head: Float[Array, "hidden vocab"],
    targets: Int[Array, "batch length"],
    inverse: PerToken,
    normaliser: PerToken,
    scale: PerToken,
) -> tuple[Float[Array, "batch length hidden"], Float[Array, "hidden vocab"]]:
    """The gradients of ``hidden`` and ``head`` for d log p = ``scale`` · T."""
    width, vocab = head.shape
    rows = hidden.reshape(-1, width)
    targets, inverse, normaliser, scale = (x.reshape(-1, 1) for x in (targets, inverse, normaliser, scale))
    columns = slice_columns(len(rows), vocab, hidden.dtype.itemsize)
    slices = -(-vocab // columns)
    precision = exact(hidden.dtype)
    dot = partial(jax.lax.dot_general, precision=precision, preferred_element_type=jnp.float32)

    def some(index, carry):
        d_hidden, d_head = carry
        # the last slice may begin earlier, to end with the vocabulary; what it shares with the one before counts once
        wanted = index * columns
        first = jnp.minimum(wanted, vocab - columns)
        part = jax.lax.dynamic_slice_in_dim(head, first, columns, axis=1)
        logits = dot(rows, part, (((1,), (0,)), ((), ()))) * inverse
        word = first + jnp.arange(columns)
        d_logits = ((word == targets) - jnp.exp(logits - normaliser)) * scale
        fresh = jnp.where(word >= wanted, d_logits, 0.0).astype(hidden.dtype)
        d_hidden += dot(fresh, part, (((1,), (1,)), ((), ())))
        d_part = dot(rows, d_logits.astype(hidden.dtype), (((0,), (0,)), ((), ()))).astype(d_head.dtype)
        return d_hidden, jax.lax.dynamic_update_slice_in_dim(d_head, d_part, first, axis=1)

    start = jnp.zeros(rows.shape, jnp.float32), jnp.zeros(head.shape, head.dtype)
    d_hidden, d_head = jax.lax.fori_loop(0, slices, some, start)
    return d_hidden.reshape(hidden.shape), d_head
