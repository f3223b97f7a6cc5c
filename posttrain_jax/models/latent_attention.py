"""Latent attention: keys and values from one low-rank vector a token (MLA; DeepSeek-V2, arXiv 2405.04434, 2.1)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.softmax_attention import cached_attention, latent_attention_step
from posttrain_jax.models.architecture import Architecture
from posttrain_jax.models.parts import constant, linear, parameter, rms_norm
from posttrain_jax.models.rope import Rotation, rotate, score_scale
from posttrain_jax.parallel.attention import segment_attention
from posttrain_jax.parallel.placement import each_part

LATENT_EPS = 1e-6  # of the norms inside, whatever the model's own (released modelling code)


class LatentAttention(nnx.Module):
    """Queries and keys have a part without position, expanded from latents, and a rotated part, one key for all heads.

    Whole sequences expand keys and values head by head. Cached decoding never does (the absorbed form): the expansion
    moves into the query and out of the mixed latents, so the cache holds ``kv_rank + rotary_dim`` numbers a token.
    """

    def __init__(self, arch: Architecture, *, rngs: nnx.Rngs, dtype: jnp.dtype, stack: tuple[int, ...] = ()):
        self.arch = arch
        self.plain_dim = arch.head_dim - arch.rotary_dim
        names = ("layers",) * len(stack)
        hidden, rank = arch.hidden, arch.kv_rank
        q_width, v_width = arch.heads * arch.head_dim, arch.heads * arch.value_dim
        kv_width = arch.heads * (self.plain_dim + arch.value_dim)

        def weight(rows, columns, axes, stddev):
            return parameter(rngs, (*stack, rows, columns), (*names, *axes), stddev=stddev, dtype=dtype)

        if arch.q_rank:
            self.q_down = weight(hidden, arch.q_rank, ("embed", None), hidden**-0.5)
            self.q_norm = constant(1.0, (*stack, arch.q_rank), (*names, "norm"), dtype=dtype)
        self.q = weight(arch.q_rank or hidden, q_width, ("rank" if arch.q_rank else "embed", "heads"), hidden**-0.5)
        self.kv_down = weight(hidden, rank + arch.rotary_dim, ("embed", None), hidden**-0.5)
        self.kv_norm = constant(1.0, (*stack, rank), (*names, "norm"), dtype=dtype)
        self.kv = weight(rank, kv_width, ("rank", "heads"), rank**-0.5)
        self.o = weight(v_width, hidden, ("heads", "embed"), v_width**-0.5 / (2 * arch.layers) ** 0.5)

    def __call__(
        self,
        x: Float[Array, "batch length hidden"],
        rotation: Rotation,
        segment_ids: Int[Array, "batch length"],
        layer: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "batch length hidden"], Float[Array, " heads"]]:
        """Attention inside the segments of packed rows, and each head's largest logit; ``layer`` does not matter."""
        plain_q, turned_q = self._queries(x, rotation)
        latent, turned_k = self._latents(x, rotation)
        expanded = linear(latent, self.kv).reshape(*x.shape[:2], self.arch.heads, -1)
        plain_k, v = expanded[..., : self.plain_dim], expanded[..., self.plain_dim :]
        turned_k = jnp.broadcast_to(turned_k[:, :, None], turned_q.shape)
        q = jnp.concatenate([plain_q, turned_q], axis=-1)
        k = jnp.concatenate([plain_k, turned_k], axis=-1)
        mixed, peaks = segment_attention(q, k, v, segment_ids, scale=score_scale(self.arch))
        return self._out(mixed), peaks

    def empty_cache(self, batch: int, length: int, dtype: str) -> dict[str, Any]:
        """No tokens, for ``length`` positions of ``kv_rank + rotary_dim`` numbers each."""
        return {"latent": jnp.zeros((batch, length, self.arch.kv_rank + self.arch.rotary_dim), dtype)}

    def extend(
        self,
        x: Float[Array, "batch new hidden"],
        rotation: Rotation,
        positions: Int[Array, "batch new"],
        valid: Bool[Array, "batch new"] | None,
        layer: Int[Array, ""] | int,
        cache: dict[str, Any],
    ) -> tuple[Float[Array, "batch new hidden"], dict[str, Any]]:
        """Attention of new tokens over the cached latents, which they join at their positions.

        With W_k, W_v the two parts of the expansion: q·(c W_k) = (q W_kᵀ)·c, and Σ w (c W_v) = (Σ w c) W_v.
        """
        rank = self.arch.kv_rank
        plain_q, turned_q = self._queries(x, rotation)
        expand = self.kv[...].astype(x.dtype).reshape(rank, self.arch.heads, -1)
        into_k, into_v = expand[..., : self.plain_dim], expand[..., self.plain_dim :]
        q = jnp.concatenate([jnp.einsum("bnhd,rhd->bnhr", plain_q, into_k), turned_q], axis=-1)
        scale = score_scale(self.arch)

        def attend(q, new, positions, cached):
            cached = cached.at[jnp.arange(len(q))[:, None], positions].set(new)
            if q.shape[1] == 1:
                return latent_attention_step(q[:, 0], cached, positions[:, 0], rank=rank, scale=scale)[:, None], cached
            keys, values = cached.swapaxes(1, 2)[:, None], cached[:, None, :, :rank]
            return cached_attention(q, keys, values, positions, scale=scale), cached

        queries, rows = ("batch", None, "heads", None), ("batch", None, None)
        new = jnp.concatenate(self._latents(x, rotation), axis=-1)
        axes = [queries, rows, ("batch", None), rows]
        mixed, cached = each_part(attend, (q, new, positions, cache["latent"]), axes, [queries, rows])
        return self._out(jnp.einsum("bnhr,rhv->bnhv", mixed, into_v)), {"latent": cached}

    def _queries(self, x, rotation):
        if self.arch.q_rank:
            x = rms_norm(linear(x, self.q_down), self.q_norm[...], LATENT_EPS)
        q = linear(x, self.q).reshape(*x.shape[:2], self.arch.heads, self.arch.head_dim)
        return q[..., : self.plain_dim], rotate(q[..., self.plain_dim :], rotation, self.arch.rotary_pairs)

    def _latents(self, x, rotation):
        down = linear(x, self.kv_down)
        latent, turned = down[..., : self.arch.kv_rank], down[..., None, self.arch.kv_rank :]
        turned = rotate(turned, rotation, self.arch.rotary_pairs)[:, :, 0]
        return rms_norm(latent, self.kv_norm[...], LATENT_EPS), turned

    def _out(self, mixed):
        return linear(mixed.reshape(*mixed.shape[:2], -1), self.o)
