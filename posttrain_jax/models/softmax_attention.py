"""Softmax attention as a function of q, k and v: over packed rows, and over a cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def segment_attention(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads value_dim"],
    segment_ids: Int[Array, "batch length"],
    *,
    scale: float,
    kv_segment_ids: Int[Array, "batch keys"] | None = None,
    query_start: Int[Array, ""] | int | None = None,
    shortest_stretch: int = 64,
    query_block: int = 512,
) -> tuple[Float[Array, "batch length heads value_dim"], Float[Array, " heads"]]:
    """Causal attention inside each segment of a packed row: softmax(scale · q·kᵀ) v over keys j ≤ i of the segment.

    Also returns the largest scale · q·kᵀ that each head saw in any segment but 0, which is padding: what QK-Clip needs,
    and the softmax has found anyway. It has no gradient.

    A row is cut into at most four stretches, none shorter than ``shortest_stretch`` (where the cutting costs more than
    it saves); the queries of one meet only the keys up to its end: up to three eighths less work. Long stretches are
    worked through in blocks of queries, so memory grows with length · query_block.
    """
    batch, length, heads, _ = q.shape
    q, k, v = _grouped(q * scale, k.shape[2]), k.swapaxes(1, 2), v.swapaxes(1, 2)
    if query_start is not None:
        index = jnp.broadcast_to(query_start + jnp.arange(length), (batch, length))
        mixed, peaks = _in_blocks(q, segment_ids, index, k, v, kv_segment_ids, query_block)
        return _ungrouped(mixed), peaks.reshape(-1)
    pieces, index = [], jnp.broadcast_to(jnp.arange(length), (batch, length))
    stretch = max(-(-length // 4), shortest_stretch)
    for start in range(0, length, stretch):
        here, seen = slice(start, start + stretch), slice(0, start + stretch)
        queries = q[:, :, :, here], segment_ids[:, here], index[:, here]
        pieces.append(_in_blocks(*queries, k[:, :, seen], v[:, :, seen], segment_ids[:, seen], query_block))
    mixed, peaks = zip(*pieces, strict=True)
    return _ungrouped(jnp.concatenate(mixed, axis=3)), jnp.stack(peaks).max(axis=0).reshape(-1)


def cached_attention(
    q: Float[Array, "batch new heads head_dim"],
    keys: Float[Array, "batch kv_heads head_dim length"],
    values: Float[Array, "batch kv_heads length value_dim"],
    positions: Int[Array, "batch new"],
    *,
    scale: float,
    query_block: int = 512,
) -> Float[Array, "batch new heads value_dim"]:
    """softmax(scale · q·kᵀ) v over the cached positions j ≤ the query's own, which the cache already holds."""
    kv_heads, length = values.shape[1:3]
    if q.shape[1] == 1:
        grouped = _grouped(q * scale, kv_heads)[:, :, :, 0]
        scores = jnp.einsum("bkgd,bkdt->bkgt", grouped, keys, preferred_element_type=jnp.float32)
        seen = (jnp.arange(length) <= positions)[:, None, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1).astype(values.dtype)
        return _ungrouped(jnp.einsum("bkgt,bktd->bkgd", weights, values)[:, :, :, None])
    one = jnp.ones(positions.shape, jnp.int32)
    everywhere = jnp.ones((q.shape[0], length), jnp.int32)
    queries = _grouped(q * scale, kv_heads), one, positions
    return _ungrouped(_in_blocks(*queries, keys.swapaxes(2, 3), values, everywhere, query_block)[0])


def _grouped(q, kv_heads):
    batch, length, heads, head_dim = q.shape
    return q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)


def _ungrouped(mixed):
    batch, kv_heads, group, length, dim = mixed.shape
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * group, dim)


def _in_blocks(q, q_segment, q_index, k, v, k_segment, query_block):
    queries = q.shape[3]
    if queries <= query_block:
        return _attend(q, k, v, q_segment, k_segment, q_index)
    blocks = -(-queries // query_block)

    def cut(x, axis):
        x = jnp.pad(x, [(0, blocks * query_block - queries if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, query_block, *x.shape[axis + 1 :]), axis, 0)

    pieces = (cut(q, 3), cut(q_segment, 1), cut(q_index, 1))
    mixed, peaks = jax.lax.map(lambda piece: _attend(piece[0], k, v, piece[1], k_segment, piece[2]), pieces)
    mixed = jnp.moveaxis(mixed, 0, 3)
    return mixed.reshape(*mixed.shape[:3], blocks * query_block, -1)[:, :, :, :queries], peaks.max(axis=0)


# The products below keep the batch and key/value head in front and the queries of a group in one long axis, the layout
# in which every one of them is a plain batched matrix product. The backward pass recomputes the weights from the
# log-sum-exp (FlashAttention, arXiv 2205.14135, algorithm 4), so no [queries, keys] array outlives its layer.


def _product(a, b, axis_a, axis_b):
    dims = (((axis_a,), (axis_b,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _masked_scores(q, k, q_segment, k_segment, q_index):
    batch, kv_heads, group, queries, head_dim = q.shape
    keys = k.shape[2]
    scores = _product(q.reshape(batch, kv_heads, group * queries, head_dim), k, 3, 3)
    allowed = (q_segment[:, :, None] == k_segment[:, None, :]) & (q_index[:, :, None] >= jnp.arange(keys))
    scores = scores.reshape(batch, kv_heads, group, queries, keys)
    return jnp.where(allowed[:, None, None], scores, -1e30).reshape(batch, kv_heads, group * queries, keys)


@jax.custom_vjp
def _attend(q, k, v, q_segment, k_segment, q_index):
    return _attend_forward(q, k, v, q_segment, k_segment, q_index)[0]


def _attend_forward(q, k, v, q_segment, k_segment, q_index):
    scores = _masked_scores(q, k, q_segment, k_segment, q_index)
    largest = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    normaliser = weights.sum(axis=-1, keepdims=True)
    mixed = (_product(weights.astype(v.dtype), v, 3, 2) / normaliser).astype(q.dtype)
    saved = (q, k, v, q_segment, k_segment, q_index, largest + jnp.log(normaliser), mixed)
    told = jnp.where(q_segment[:, None, None] > 0, jax.lax.stop_gradient(largest).reshape(q.shape[:-1]), -jnp.inf)
    return (mixed.reshape(*q.shape[:-1], v.shape[-1]), told.max(axis=(0, 3))), saved


def _attend_backward(saved, gradients):
    gradient, _ = gradients
    q, k, v, q_segment, k_segment, q_index, logsumexp, mixed = saved
    gradient = gradient.reshape(mixed.shape)
    flat_q = q.reshape(*mixed.shape[:-1], q.shape[-1])
    weights = jnp.exp(_masked_scores(q, k, q_segment, k_segment, q_index) - logsumexp)
    d_v = _product(weights.astype(v.dtype), gradient, 2, 2)
    d_weights = _product(gradient, v, 3, 3)
    delta = (gradient.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    d_scores = (weights * (d_weights - delta)).astype(q.dtype)
    d_q = _product(d_scores, k, 3, 2).reshape(q.shape).astype(q.dtype)
    d_k = _product(d_scores, flat_q, 2, 2).astype(k.dtype)
    return d_q, d_k, d_v.astype(v.dtype), None, None, None


_attend.defvjp(_attend_forward, _attend_backward)
