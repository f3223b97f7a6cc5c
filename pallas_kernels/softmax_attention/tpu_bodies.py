"""What a TPU core does with one pair of blocks: the equations of ``attention.py``, head after head."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.backends import exact
from pallas_kernels.softmax_attention.blocks import NOTHING, visited
from pallas_kernels.softmax_attention.step import LANES

UNSEEN, START = -1e30, -5e29  # a masked score, and a maximum before any: exp(UNSEEN - START) = 0
NEVER = 1e30  # log Σ exp of a query that saw nothing: exp(score - NEVER) = 0
PADDING = -1  # a segment that no key has


def forward(
    first, count, q_one, k_one, start, q_ids, k_ids, q, k, v, out, logsumexp, peaks, m, total, mixed, *, of, scale
):
    """o, L and the largest logit; m, Σ exp(s - m) and Σ exp(s - m) v are kept while the keys stream past."""
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    here = b * of.q_blocks + i

    @pl.when((i == 0) & (step == 0))
    def _():
        peaks[...] = jnp.full_like(peaks, START)

    @pl.when(step == 0)
    def _():
        m[...] = jnp.full_like(m, START)
        total[...], mixed[...] = jnp.zeros_like(total), jnp.zeros_like(mixed)

    j = visited(first[here], count[here], step)

    def meet(masked):
        seen = _seen(of, start[0], i, j, _column(q_ids), k_ids[0, :1], queries_on=0) if masked else None
        for head in range(of.together):
            q_, k_, v_ = _head(q, head, of.head_dim), *_kv_head(of, k, v, head)
            if masked:
                v_ = _within(v_, j, of.k_block, of.kv_length)
            score = _scores(q_, k_, scale, seen)
            before = m[head, :, :1]
            now = jnp.maximum(before, score.max(axis=1, keepdims=True))
            weight, faded = jnp.exp(score - now), jnp.exp(before - now)
            added = faded * total[head, :, :1] + weight.sum(axis=1, keepdims=True)
            total[head] = jnp.broadcast_to(added, total.shape[1:])
            mixed[head] = faded * mixed[head] + _dot(weight.astype(v_.dtype), v_, (1, 0))
            m[head] = jnp.broadcast_to(now, m.shape[1:])

    _masked_or_not(of, start[0], i, j, q_one, k_one, step < count[here], meet)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        lane = jax.lax.broadcasted_iota(jnp.int32, (of.q_block, LANES), 1)
        columns = jnp.full((of.q_block, LANES), NEVER)
        for head in range(of.together):
            saw = total[head] > 0
            normaliser = jnp.where(saw, total[head], 1.0)
            columns = jnp.where((lane == head) & saw, m[head] + jnp.log(normaliser), columns)
            _head_at(out, head, of.value_dim)[...] = (mixed[head] / normaliser[:, :1]).astype(out.dtype)
            peak = jnp.maximum(peaks[0, 0, head : head + 1], m[head].max(axis=0, keepdims=True))
            peaks[0, 0, head : head + 1] = peak
        logsumexp[0, 0] = columns.T[: of.rows]


def backward_queries(
    first, count, q_one, k_one, start, q_ids, k_ids, q, k, v, g, stats, d_q, columns, sums, *, of, scale
):
    """dq_i = scale Σ_j ds_ij k_j while the keys stream past; ``stats`` has L and δ."""
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    here = b * of.q_blocks + i

    @pl.when(step == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)
        columns[0], columns[1] = stats[0, 0, 0].T, stats[1, 0, 0].T

    j = visited(first[here], count[here], step)

    def meet(masked):
        seen = _seen(of, start[0], i, j, _column(q_ids), k_ids[0, :1], queries_on=0) if masked else None
        for head in range(of.together):
            q_, g_ = _head(q, head, of.head_dim), _head(g, head, of.value_dim)
            k_, v_ = _kv_head(of, k, v, head)
            if masked:
                k_, v_ = (_within(x, j, of.k_block, of.kv_length) for x in (k_, v_))
            score = _scores(q_, k_, scale, seen)
            weight = jnp.exp(score - columns[0, :, head : head + 1])
            d_score = weight * (_dot(g_, v_, (1, 1)) - columns[1, :, head : head + 1])
            sums[head] += _dot(d_score.astype(k_.dtype), k_, (1, 0))

    _masked_or_not(of, start[0], i, j, q_one, k_one, step < count[here], meet)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        for head in range(of.together):
            _head_at(d_q, head, of.head_dim)[...] = (scale * sums[head]).astype(d_q.dtype)


def backward_keys(
    first, count, q_one, k_one, start, q_ids, k_ids, q, k, v, g, stats, d_k, d_v, k_sums, v_sums, *, of, scale
):
    """dk_j = scale Σ_i ds_ij q_i and dv_j = Σ_i p_ij g_i while queries stream past, of all heads that share the keys.

    Scores lie with keys down and queries across, so that L and δ are rows and no product needs a transpose.
    """
    b, j, part, step = (pl.program_id(axis) for axis in (0, 2, 3, 4))
    here = b * of.k_blocks + j

    @pl.when((part == 0) & (step == 0))
    def _():
        k_sums[...], v_sums[...] = jnp.zeros_like(k_sums), jnp.zeros_like(v_sums)

    i = visited(first[here], count[here], step)

    def meet(masked):
        seen = _seen(of, start[0], i, j, q_ids[0, :1], _column(k_ids), queries_on=1) if masked else None
        for head in range(of.together):
            q_, g_ = _head(q, head, of.head_dim), _head(g, head, of.value_dim)
            k_, v_ = _kv_head(of, k, v, head)
            if masked:
                q_, g_ = (_within(x, i, of.q_block, of.length) for x in (q_, g_))
            score = _scores(k_, q_, scale, seen)
            weight = jnp.exp(score - stats[0, 0, 0, head : head + 1])
            v_sums[head // of.group] += _dot(weight.astype(g_.dtype), g_, (1, 0))
            d_score = weight * (_dot(v_, g_, (1, 1)) - stats[1, 0, 0, head : head + 1])
            k_sums[head // of.group] += _dot(d_score.astype(q_.dtype), q_, (1, 0))

    _masked_or_not(of, start[0], i, j, q_one, k_one, step < count[here], meet)

    @pl.when((part == of.parts - 1) & (step == pl.num_programs(4) - 1))
    def _():
        for head in range(of.kv):
            _head_at(d_k, head, of.head_dim)[...] = (scale * k_sums[head]).astype(d_k.dtype)
            _head_at(d_v, head, of.value_dim)[...] = v_sums[head].astype(d_v.dtype)


def _masked_or_not(of, start, i, j, q_one, k_one, meets, meet):
    """No mask where both blocks are of one segment and the first query is as late as the last key."""
    b = pl.program_id(0)
    q_segment, k_segment = q_one[b * of.q_blocks + i], k_one[b * of.k_blocks + j]
    whole = (q_segment == k_segment) & (q_segment != NOTHING)
    whole &= start + i * of.q_block >= (j + 1) * of.k_block - 1
    pl.when(meets & whole)(partial(meet, False))
    pl.when(meets & ~whole)(partial(meet, True))


def _scores(a, b, scale, seen):
    scores = scale * _dot(a, b, (1, 1))
    return scores if seen is None else jnp.where(seen, scores, UNSEEN)


def _seen(of, start, i, j, q_ids, k_ids, queries_on):
    q_ids = jnp.where(q_ids == 0, PADDING, q_ids)
    shape = jnp.broadcast_shapes(q_ids.shape, k_ids.shape)
    query, key = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (queries_on, 1 - queries_on))
    return (q_ids == k_ids) & (query - key >= j * of.k_block - i * of.q_block - start)


def _column(ids):
    return ids[0].T[:, :1]


def _within(x, block, size, length):
    """Zeros past the end of the array, where anything may be read."""
    if length % size == 0:
        return x
    index = block * size + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.where(index < length, x, jnp.zeros_like(x))


def _head_at(ref, head, dim):
    return ref.at[0, :, head * dim : (head + 1) * dim]


def _head(ref, head, dim):
    return ref[0, :, head * dim : (head + 1) * dim]


def _kv_head(of, k, v, head):
    return _head(k, head // of.group, of.head_dim), _head(v, head // of.group, of.value_dim)


def _dot(a, b, axes):
    precision = exact(a.dtype)
    dims = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
