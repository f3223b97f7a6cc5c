"""Decoding over a latent cache on a TPU core: blocks of the cache stream past the queries of all heads, read once.

The softmax goes on from block to block (FlashAttention's running maximum); blocks past the position of a sequence are
neither fetched nor computed. Positions lie across: a width of 576 would fill only 90 % of the lanes it takes, so this
is how XLA itself lays such an array out, and turning it round costs nothing.
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
from pallas_kernels.softmax_attention.step import LANES, up_to
from pallas_kernels.softmax_attention.tpu_bodies import START, UNSEEN


def why_not(q: Float[Array, "batch heads width"], cache: Float[Array, "batch length width"], rank: int) -> str | None:
    """Why these shapes cannot run here, or None."""
    if q.dtype != cache.dtype or q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"q and cache are {q.dtype} and {cache.dtype}, not both bfloat16 or both float32"
    return f"rank={rank} is no multiple of the {LANES} lanes" if rank % LANES else None


def step(
    q: Float[Array, "batch heads width"],
    cache: Float[Array, "batch length width"],
    positions: Int[Array, " batch"],
    *,
    rank: int,
    scale: float,
) -> Float[Array, "batch heads rank"]:
    """softmax(scale · q·c) c[:rank] over the cached positions up to each query's own."""
    sizes = tiles.lookup("latent_attention_step")
    (batch, heads, width), length = q.shape, cache.shape[1]
    tokens = min(sizes["tokens"], up_to(length, LANES))
    last = jnp.clip(positions.astype(jnp.int32), 0, length - 1)
    whole = pl.BlockSpec((1, heads, width), lambda b, *_: (b, 0, 0))
    wide = pltpu.VMEM((heads, LANES), jnp.float32)
    return pl.pallas_call(
        partial(_kernel, rank=rank, scale=scale, length=length),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, last.max() // tokens + 1),
            in_specs=[
                whole,
                pl.BlockSpec(
                    (1, width, tokens), lambda b, t, last: (b, 0, jnp.minimum(t, jax.lax.div(last[b], tokens)))
                ),
            ],
            out_specs=pl.BlockSpec((1, heads, rank), lambda b, *_: (b, 0, 0)),
            scratch_shapes=[wide, wide, pltpu.VMEM((heads, rank), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, heads, rank), q.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=sizes["bytes"]
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * heads * length * (width + rank),
            bytes_accessed=(cache.size + q.size + batch * heads * rank) * q.dtype.itemsize,
            transcendentals=batch * heads * length,
        ),
        interpret=tiles.interpret(),
        name="latent_attention_step",
    )(last, q, cache.swapaxes(1, 2))


def _kernel(last, q, cache, out, m, total, mixed, *, rank, scale, length):
    tokens, step = cache.shape[2], pl.program_id(1)
    position = last[pl.program_id(0)]
    dot = partial(
        jax.lax.dot_general,
        precision=exact(q.dtype),
        preferred_element_type=jnp.float32,
    )

    @pl.when(step == 0)
    def _():
        m[...] = jnp.full_like(m, START)
        total[...], mixed[...] = jnp.zeros_like(total), jnp.zeros_like(mixed)

    def meet(masked):
        values = cache[0, :rank]
        score = scale * dot(q[0], cache[0], (((1,), (0,)), ((), ())))  # [heads, tokens]
        if masked:
            index = step * tokens + jax.lax.broadcasted_iota(jnp.int32, score.shape, 1)
            score = jnp.where(index <= position, score, UNSEEN)
            if length % tokens:  # what is read past the end may be anything
                index = step * tokens + jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
                values = jnp.where(index < length, values, jnp.zeros_like(values))
        before = m[:, :1]
        now = jnp.maximum(before, score.max(axis=1, keepdims=True))
        weight, faded = jnp.exp(score - now), jnp.exp(before - now)
        total[...] = jnp.broadcast_to(faded * total[:, :1] + weight.sum(axis=1, keepdims=True), total.shape)
        mixed[...] = faded * mixed[...] + dot(weight.astype(values.dtype), values, (((1,), (1,)), ((), ())))
        m[...] = jnp.broadcast_to(now, m.shape)

    reached, all_seen = step * tokens <= position, (step + 1) * tokens - 1 <= position
    pl.when(all_seen)(partial(meet, False))
    pl.when(reached & ~all_seen)(partial(meet, True))

    @pl.when(step == pl.num_programs(1) - 1)
    def _():
        out[0] = (mixed[...] / total[:, :1]).astype(out.dtype)
