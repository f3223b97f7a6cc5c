"""The statistics on a TPU core, in one pass over the vocabulary; the gradient by slices of the vocabulary.

Forward: a tile of tokens stays in VMEM while the head streams past it, tile by tile; the running maximum m, Σ exp(z-m)
and Σ exp(z-m)(z-m) become the log-sum-exp and the entropy. Backward: for a slice of the vocabulary the logits are
formed again and turned into their gradients where they leave the matrix unit; these, in the format of ``hidden``, meet
the slice of the head and the hidden states in two more products. All of them are plain products that XLA fuses well.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import tiles

LANES = 128
SLICE_BYTES = 1 << 27  # of the gradients of logits that exist at one time

PerToken = Float[Array, "batch length"]


def why_not(hidden: Float[Array, "batch length hidden"]) -> str | None:
    """Why these shapes cannot run here, or None."""
    width = hidden.shape[-1]
    return f"hidden={width} is no multiple of the {LANES} lanes" if width % LANES else None


def statistics(
    hidden: Float[Array, "batch length hidden"],
    head: Float[Array, "hidden vocab"],
    targets: Int[Array, "batch length"],
    inverse: PerToken,
) -> tuple[PerToken, PerToken, PerToken]:
    """log Σ exp z, z of the target (0 if it is none of these words) and the entropy."""
    shape, (width, vocab) = targets.shape, head.shape
    tokens = targets.size
    sizes = tiles.lookup("token_logprobs")
    rows = min(sizes["tokens"], -(-tokens // 8) * 8)
    columns = _columns(sizes, rows, width, vocab, hidden.dtype.itemsize)
    per_token = pl.BlockSpec((rows, 1), lambda t, n: (t, 0))
    grid = (pl.cdiv(tokens, rows), pl.cdiv(vocab, columns))
    found = pl.pallas_call(
        partial(_kernel, vocab=vocab),
        grid=grid,
        in_specs=[
            pl.BlockSpec((rows, width), lambda t, n: (t, 0)),
            pl.BlockSpec((width, columns), lambda t, n: (0, n)),
            per_token,
            per_token,
        ],
        out_specs=[per_token] * 3,
        out_shape=[jax.ShapeDtypeStruct((tokens, 1), jnp.float32)] * 3,
        scratch_shapes=[pltpu.VMEM((rows, LANES), jnp.float32)] * 4,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=sizes["bytes"]
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * tokens * width * vocab,
            bytes_accessed=hidden.size * hidden.dtype.itemsize + grid[0] * head.size * head.dtype.itemsize,
            transcendentals=tokens * vocab,
        ),
        interpret=tiles.interpret(),
        name="token_logprobs",
    )(hidden.reshape(tokens, width), head, targets.reshape(-1, 1), inverse.reshape(-1, 1))
    normaliser, chosen, entropy = (x.reshape(shape) for x in found)
    return normaliser, chosen, entropy


def _columns(sizes, rows, width, vocab, itemsize):
    """As many words at a time as the table says, or fewer if their blocks and some logits do not fit in VMEM."""
    columns = min(sizes["vocab"], -(-vocab // LANES) * LANES)
    while columns > LANES and 2 * itemsize * width * (rows + columns) + 16 * rows * columns > sizes["bytes"] - (
        2 << 20
    ):
        columns = columns // (2 * LANES) * LANES
    return columns


def _kernel(hidden, head, targets, inverse, normaliser, chosen, entropy, largest, total, spread, met, *, vocab):
    step, columns = pl.program_id(1), head.shape[1]

    @pl.when(step == 0)
    def _():
        largest[...] = jnp.full_like(largest, -1e30)
        total[...], spread[...], met[...] = (jnp.zeros_like(x) for x in (total, spread, met))

    precision = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else None
    logits = jnp.dot(hidden[...], head[...], precision=precision, preferred_element_type=jnp.float32) * inverse[...]
    word = step * columns + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    known = word < vocab
    logits = jnp.where(known, logits, -1e30)
    before = largest[:, :1]
    now = jnp.maximum(before, logits.max(axis=1, keepdims=True))
    below = logits - now
    weight = jnp.exp(below)
    faded, shift = jnp.exp(before - now), jnp.maximum(before - now, -1e9)
    added = jnp.where(known, weight * below, 0.0).sum(axis=1, keepdims=True)
    spread[...] = jnp.broadcast_to(faded * (spread[:, :1] + total[:, :1] * shift) + added, spread.shape)
    total[...] = jnp.broadcast_to(faded * total[:, :1] + weight.sum(axis=1, keepdims=True), total.shape)
    largest[...] = jnp.broadcast_to(now, largest.shape)
    met[...] += jnp.where((word == targets[...]) & known, logits, 0.0).sum(axis=1, keepdims=True)

    @pl.when(step == pl.num_programs(1) - 1)
    def _():
        log_total = jnp.log(total[:, :1])
        normaliser[...] = largest[:, :1] + log_total
        chosen[...] = met[:, :1]
        entropy[...] = log_total - spread[:, :1] / total[:, :1]


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
    precision = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else None
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
