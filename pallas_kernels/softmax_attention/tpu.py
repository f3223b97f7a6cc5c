"""FlashAttention on a TPU core: a block of queries of some heads stays in VMEM, the keys it meets stream past.

Arrays keep their layout ``[batch, length, heads · dim]``. The grid has as many steps over keys as the block of queries
that meets the most of them needs; others idle, where they are. Blocks that see all of each other but for causality
need no mask. Lengths need not be whole blocks: what is read past the end is masked, never multiplied.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import tiles
from pallas_kernels.softmax_attention import tpu_bodies
from pallas_kernels.softmax_attention.blocks import Blocks, blocks, padded, visited
from pallas_kernels.softmax_attention.step import LANES, SUBLANES, Step, choose_step

PREFETCHED = 5  # first, count, q_segment, k_segment, query_start

Queries = Float[Array, "batch length heads head_dim"]
Keys = Float[Array, "batch kv_length kv_heads head_dim"]
Values = Float[Array, "batch kv_length kv_heads value_dim"]
Outputs = Float[Array, "batch length heads value_dim"]
PerQuery = Float[Array, "batch heads length"]


def why_not(q: Queries, k: Keys, v: Values) -> str | None:
    """Why these shapes cannot run here, or None."""
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}, not all bfloat16 or all float32"
    for name, dim in (("head_dim", q.shape[3]), ("value_dim", v.shape[3])):
        if dim % (LANES // 2):
            return f"{name}={dim} is no multiple of {LANES // 2}, half of the lanes"
        if dim % LANES and k.shape[2] % 2:
            return f"{name}={dim} fills the {LANES} lanes in pairs of heads only, and kv_heads={k.shape[2]} is odd"
    return None


def forward(
    q: Queries,
    k: Keys,
    v: Values,
    segment_ids: Int[Array, "batch length"],
    kv_segment_ids: Int[Array, "batch kv_length"],
    query_start: Int[Array, ""],
    *,
    scale: float,
) -> tuple[Outputs, PerQuery, Float[Array, " heads"]]:
    """The outputs, log Σ exp of each query's logits (NEVER where it sees none), and the largest logit of each head."""
    of = choose_step("softmax_attention", q, k, v)
    met, rows = _layout(of, segment_ids, kv_segment_ids, query_start)
    whole = of.q_blocks * of.q_block
    groups = of.heads // of.together
    wide = pltpu.VMEM((of.together, of.q_block, LANES), jnp.float32)
    dims = of.head_dim + of.value_dim
    out, logsumexp, peaks = pl.pallas_call(
        partial(tpu_bodies.forward, of=of, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=PREFETCHED,
            grid=(of.batch, groups, of.q_blocks, met.keys.steps()),
            in_specs=_by_queries(of)[:5],
            out_specs=[
                pl.BlockSpec((1, of.q_block, of.together * of.value_dim), lambda b, h, i, *_: (b, i, h)),
                pl.BlockSpec((1, 1, of.rows, of.q_block), lambda b, h, i, *_: (b, h, 0, i)),
                pl.BlockSpec((1, 1, of.rows, LANES), lambda b, h, *_: (b, h, 0, 0)),
            ],
            scratch_shapes=[wide, wide, pltpu.VMEM((of.together, of.q_block, of.value_dim), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((of.batch, of.length, of.heads * of.value_dim), q.dtype),
            jax.ShapeDtypeStruct((of.batch, groups, of.rows, whole), jnp.float32),
            jax.ShapeDtypeStruct((of.batch, groups, of.rows, LANES), jnp.float32),
        ],
        cost_estimate=of.cost(dims, 1, of.kv * of.k_block * dims, of.batch * of.length * of.heads * dims),
        **_options(of, "parallel", "parallel", "arbitrary", "arbitrary"),
        name="softmax_attention",
    )(*_prefetched(met, met.keys, query_start), *rows, *map(_flat, (q, k, v)))
    peaks = peaks[:, :, : of.together].reshape(of.batch, of.heads, LANES).max(axis=(0, 2))
    logsumexp = logsumexp[:, :, : of.together].reshape(of.batch, of.heads, whole)[:, :, : of.length]
    peaks = jnp.where(peaks > tpu_bodies.START, peaks, -jnp.inf)
    return out.reshape(*q.shape[:3], of.value_dim), logsumexp, peaks


def backward(
    q: Queries,
    k: Keys,
    v: Values,
    segment_ids: Int[Array, "batch length"],
    kv_segment_ids: Int[Array, "batch kv_length"],
    query_start: Int[Array, ""],
    g: Outputs,
    logsumexp: PerQuery,
    delta: PerQuery,
    *,
    scale: float,
) -> tuple[Queries, Keys, Values]:
    """The gradients of q, and of k and v, from that of the outputs."""
    of = choose_step("softmax_attention_backward", q, k, v)
    met, rows = _layout(of, segment_ids, kv_segment_ids, query_start)
    whole = of.q_blocks * of.q_block
    stats = jnp.stack([logsumexp, delta]).reshape(2, of.batch, of.heads // of.together, of.together, of.length)
    stats = jnp.pad(stats, ((0, 0), (0, 0), (0, 0), (0, of.rows - of.together), (0, whole - of.length)))
    arrays = *rows, *map(_flat, (q, k, v, g)), stats
    once = of.batch * of.length * of.heads * (2 * of.head_dim + of.value_dim)
    d_q = pl.pallas_call(
        partial(tpu_bodies.backward_queries, of=of, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=PREFETCHED,
            grid=(of.batch, of.heads // of.together, of.q_blocks, met.keys.steps()),
            in_specs=_by_queries(of),
            out_specs=pl.BlockSpec((1, of.q_block, of.together * of.head_dim), lambda b, h, i, *_: (b, i, h)),
            scratch_shapes=[
                pltpu.VMEM((2, of.q_block, of.rows), jnp.float32),
                pltpu.VMEM((of.together, of.q_block, of.head_dim), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((of.batch, of.length, of.heads * of.head_dim), q.dtype),
        cost_estimate=of.cost(
            2 * of.head_dim + of.value_dim, 1, of.kv * of.k_block * (of.head_dim + of.value_dim), once
        ),
        **_options(of, "parallel", "parallel", "parallel", "arbitrary"),
        name="softmax_attention_backward_queries",
    )(*_prefetched(met, met.keys, query_start), *arrays)

    def keys(dim):
        return pl.BlockSpec((1, of.k_block, of.kv * dim), lambda b, n, j, *_: (b, j, n))

    once = 2 * of.batch * of.kv_length * of.kv_heads * (of.head_dim + of.value_dim)
    d_k, d_v = pl.pallas_call(
        partial(tpu_bodies.backward_keys, of=of, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=PREFETCHED,
            grid=(of.batch, of.kv_heads // of.kv, of.k_blocks, of.parts, met.queries.steps()),
            in_specs=_by_keys(of),
            out_specs=[keys(of.head_dim), keys(of.value_dim)],
            scratch_shapes=[pltpu.VMEM((of.kv, of.k_block, d), jnp.float32) for d in (of.head_dim, of.value_dim)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((of.batch, of.kv_length, of.kv_heads * of.head_dim), k.dtype),
            jax.ShapeDtypeStruct((of.batch, of.kv_length, of.kv_heads * of.value_dim), v.dtype),
        ],
        cost_estimate=of.cost(
            2 * (of.head_dim + of.value_dim), 1, of.together * of.q_block * (of.head_dim + of.value_dim), once
        ),
        **_options(of, "parallel", "parallel", "parallel", "arbitrary", "arbitrary"),
        name="softmax_attention_backward_keys",
    )(*_prefetched(met, met.queries, query_start), *arrays)
    return d_q.reshape(q.shape), d_k.reshape(k.shape), d_v.reshape(v.shape)


def _by_queries(of: Step) -> list[pl.BlockSpec]:
    """Where q_ids, k_ids, q, k, v, g and the statistics lie for step (batch, heads, block of queries, step)."""

    def key(b, h, i, step, first, count, *_):
        here = b * of.q_blocks + i
        return visited(first[here], count[here], step)

    return _specs(of, lambda b, h, i, *_: (b, i, h), lambda b, h, *at: (b, key(b, h, *at), jax.lax.div(h, of.parts)))


def _by_keys(of: Step) -> list[pl.BlockSpec]:
    """The same for step (batch, key/value heads, block of keys, part of their query heads, step)."""

    def query(b, j, step, first, count, *_):
        here = b * of.k_blocks + j
        return visited(first[here], count[here], step)

    return _specs(
        of, lambda b, n, j, part, *at: (b, query(b, j, *at), n * of.parts + part), lambda b, n, j, *_: (b, j, n)
    )


def _specs(of: Step, q_at: Any, k_at: Any) -> list[pl.BlockSpec]:
    """``q_at`` and ``k_at`` tell batch, block and heads."""

    def row(at):
        return lambda *x: (at(*x)[0], 0, at(*x)[1])

    def stats(*x):
        b, i, h = q_at(*x)
        return 0, b, h, 0, i

    return [
        pl.BlockSpec((1, SUBLANES, of.q_block), row(q_at)),
        pl.BlockSpec((1, SUBLANES, of.k_block), row(k_at)),
        pl.BlockSpec((1, of.q_block, of.together * of.head_dim), q_at),
        pl.BlockSpec((1, of.k_block, of.kv * of.head_dim), k_at),
        pl.BlockSpec((1, of.k_block, of.kv * of.value_dim), k_at),
        pl.BlockSpec((1, of.q_block, of.together * of.value_dim), q_at),
        pl.BlockSpec((2, 1, 1, of.rows, of.q_block), stats),
    ]


def _layout(of: Step, segment_ids, kv_segment_ids, query_start) -> tuple[Blocks, tuple[jax.Array, ...]]:
    """Which blocks meet, and the segments as rows of lanes, repeated to fill a tile."""
    ids = padded(segment_ids, of.q_block), padded(kv_segment_ids, of.k_block)
    rows = tuple(jnp.broadcast_to(x[:, None], (len(x), SUBLANES, x.shape[1])) for x in ids)
    return blocks(*ids, query_start, of.q_block, of.k_block), rows


def _prefetched(met: Blocks, span, query_start) -> tuple[jax.Array, ...]:
    return *(x.reshape(-1) for x in (*span, met.q_segment, met.k_segment)), jnp.asarray(query_start).reshape(1)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:2], -1)


def _options(of: Step, *semantics: Any) -> dict[str, Any]:
    params = pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=of.vmem)
    return {"compiler_params": params, "interpret": tiles.interpret()}
