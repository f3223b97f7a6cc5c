"""The statistics on a TPU core, in one pass over the vocabulary.

A tile of tokens stays in VMEM while the head streams past it, tile by tile; the running maximum m, Σ exp(z-m) and
Σ exp(z-m)(z-m) become the log-sum-exp and the entropy.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import tiles
from pallas_kernels.backends import exact

LANES = 128

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
    columns = _columns(sizes, rows, vocab, width * hidden.dtype.itemsize, width * head.dtype.itemsize)
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


def _columns(sizes, rows, vocab, row_bytes, column_bytes):
    """As many words at a time as the table says, or fewer if their blocks and some logits do not fit in VMEM."""
    columns, room = min(sizes["vocab"], -(-vocab // LANES) * LANES), sizes["bytes"] - (2 << 20)
    while columns > LANES and 2 * (row_bytes * rows + column_bytes * columns) + 16 * rows * columns > room:
        columns = columns // (2 * LANES) * LANES
    return columns


def _kernel(hidden, head, targets, inverse, normaliser, chosen, entropy, largest, total, spread, met, *, vocab):
    step, columns = pl.program_id(1), head.shape[1]

    @pl.when(step == 0)
    def _():
        largest[...] = jnp.full_like(largest, -1e30)
        total[...], spread[...], met[...] = (jnp.zeros_like(x) for x in (total, spread, met))

    precision = exact(hidden.dtype)
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
