"""Softmax attention on a mesh: rows over the data axes, heads over "tensor", lengths over "context"."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, Int

from posttrain_jax.models import softmax_attention as kernel
from posttrain_jax.parallel.placement import along, current


def head_axes(heads: int, kv_heads: int) -> tuple[str, str] | tuple[None, None]:
    """The names of the axes of queries' and of keys' heads; none where splitting would part a head from its keys."""
    place = current()
    if place is None or place.spec(("heads",), (heads,)) != place.spec(("kv_heads",), (kv_heads,)):
        return None, None
    return "heads", "kv_heads"


def segment_attention(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads value_dim"],
    segment_ids: Int[Array, "batch length"],
    *,
    scale: float,
) -> tuple[Float[Array, "batch length heads value_dim"], Float[Array, " heads"]]:
    """Causal attention inside each segment of packed rows, and the largest logit of each head.

    Where lengths are split, queries stay where they are and meet the keys and values of the whole row, gathered; their
    gradients come home in a reduce-scatter.
    """
    place = current()
    if place is None:
        return kernel.segment_attention(q, k, v, segment_ids, scale=scale)
    own, shared = head_axes(q.shape[2], k.shape[2])
    part = place.spec(("batch", "length", own, None), q.shape)
    keys = place.spec(("batch", "length", shared, None), k.shape)
    rows, lengths, heads = (along(part, axis) for axis in range(3))

    def local(q, k, v, segment_ids):
        options, kv_segment_ids = {}, segment_ids
        if lengths:
            k, v, kv_segment_ids = (jax.lax.all_gather(x, lengths, axis=1, tiled=True) for x in (k, v, segment_ids))
            start = jax.lax.axis_index(lengths) * q.shape[1]
            options = {"kv_segment_ids": kv_segment_ids, "query_start": start}
        out, peaks = kernel.segment_attention(q, k, v, segment_ids, scale=scale, **options)
        peaks = jax.lax.stop_gradient(peaks)
        return out, jax.lax.pmax(peaks, rows + lengths) if rows + lengths else peaks

    flat = jax.P(*part[:2])
    return jax.shard_map(
        local, mesh=place.mesh, in_specs=(part, keys, keys, flat), out_specs=(part, jax.P(heads)), check_vma=False
    )(q, k, v, segment_ids)
