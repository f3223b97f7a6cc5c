"""Softmax attention with every score in memory: the maths (arXiv 1706.03762, 3.2.1), causal inside each segment."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def softmax_attention_definition(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch kv_length kv_heads head_dim"],
    v: Float[Array, "batch kv_length kv_heads value_dim"],
    segment_ids: Int[Array, "batch length"],
    kv_segment_ids: Int[Array, "batch kv_length"],
    query_start: Int[Array, ""] | int,
    *,
    scale: float,
) -> tuple[Float[Array, "batch length heads value_dim"], Float[Array, " heads"]]:
    """softmax(scale · q·kᵀ) v over the keys each query may see, 0 if none; the largest logit of each head."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = scale * jnp.einsum("bihd,bjhd->bhij", q, k, preferred_element_type=wide)
    index = query_start + jnp.arange(q.shape[1])
    seen = (segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & (segment_ids[:, :, None] != 0)
    seen = (seen & (index[:, None] >= jnp.arange(k.shape[1])))[:, None]
    weights = jnp.where(seen, jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1), 0.0)
    out = jnp.einsum("bhij,bjhd->bihd", weights.astype(v.dtype), v, preferred_element_type=wide)
    peaks = jnp.where(seen, jax.lax.stop_gradient(scores), -jnp.inf).max(axis=(0, 2, 3))
    return out.astype(q.dtype), peaks


def latent_step_definition(
    q: Float[Array, "batch heads width"],
    cache: Float[Array, "batch length width"],
    positions: Int[Array, " batch"],
    *,
    rank: int,
    scale: float,
) -> Float[Array, "batch heads rank"]:
    """softmax(scale · q·c) c[:rank] over the cached latents c at positions up to the query's own."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = scale * jnp.einsum("bhd,btd->bht", q, cache, preferred_element_type=wide)
    seen = jnp.arange(cache.shape[1]) <= positions[:, None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(cache.dtype)
    return jnp.einsum("bht,btr->bhr", weights, cache[..., :rank], preferred_element_type=wide).astype(q.dtype)
