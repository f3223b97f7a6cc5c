"""Grouped-query attention: biases, QK-norm and rotary embedding as the architecture says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.softmax_attention import cached_attention
from posttrain_jax.models.architecture import Architecture
from posttrain_jax.models.parts import constant, linear, parameter, rms_norm
from posttrain_jax.models.rope import Rotation, rotate, score_scale
from posttrain_jax.parallel.attention import head_axes, segment_attention
from posttrain_jax.parallel.placement import each_part

Cache = dict[str, Any]


class GroupedQueryAttention(nnx.Module):
    """Several query heads share a key/value head (arXiv 2305.13245).

    With a leading ``stack`` shape the weights of many layers are held together, one slice a layer.
    """

    def __init__(self, arch: Architecture, *, rngs: nnx.Rngs, dtype: jnp.dtype, stack: tuple[int, ...] = ()):
        self.arch = arch
        names = ("layers",) * len(stack)
        q_width, kv_width = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
        std = arch.hidden**-0.5
        out_std = q_width**-0.5 / (2 * arch.layers) ** 0.5
        into_q = (*stack, arch.hidden, q_width), (*names, "embed", "heads")
        into_kv = (*stack, arch.hidden, kv_width), (*names, "embed", "kv_heads")
        out_of = (*stack, q_width, arch.hidden), (*names, "heads", "embed")
        self.q = parameter(rngs, *into_q, stddev=std, dtype=dtype)
        self.k = parameter(rngs, *into_kv, stddev=std, dtype=dtype)
        self.v = parameter(rngs, *into_kv, stddev=std, dtype=dtype)
        self.o = parameter(rngs, *out_of, stddev=out_std, dtype=dtype)
        if arch.attention_bias:
            self.q_bias = constant(0.0, (*stack, q_width), (*names, "heads"), dtype=dtype)
            self.k_bias = constant(0.0, (*stack, kv_width), (*names, "kv_heads"), dtype=dtype)
            self.v_bias = constant(0.0, (*stack, kv_width), (*names, "kv_heads"), dtype=dtype)
        if arch.qk_norm != "none":
            q_scale, kv_scale = (q_width, kv_width) if arch.qk_norm == "joint" else (arch.head_dim,) * 2
            self.q_norm = constant(1.0, (*stack, q_scale), (*names, "norm"), dtype=dtype)
            self.k_norm = constant(1.0, (*stack, kv_scale), (*names, "norm"), dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "batch length hidden"],
        rotation: Rotation,
        segment_ids: Int[Array, "batch length"],
        layer: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "batch length hidden"], Float[Array, " heads"]]:
        """Attention inside the segments of packed rows, and each head's largest logit; ``layer`` does not matter."""
        q, k, v = self._project(x, rotation)
        mixed, peaks = segment_attention(q, k, v, segment_ids, scale=score_scale(self.arch))
        return self._out(mixed), peaks

    def empty_cache(self, batch: int, length: int, dtype: str) -> Cache:
        """No keys and no values, for ``length`` positions; keys lie with positions last, as scores do."""
        heads, dim = self.arch.kv_heads, self.arch.head_dim
        return {
            "keys": jnp.zeros((batch, heads, dim, length), dtype),
            "values": jnp.zeros((batch, heads, length, dim), dtype),
        }

    def extend(
        self,
        x: Float[Array, "batch new hidden"],
        rotation: Rotation,
        positions: Int[Array, "batch new"],
        valid: Bool[Array, "batch new"] | None,
        layer: Int[Array, ""] | int,
        cache: Cache,
    ) -> tuple[Float[Array, "batch new hidden"], Cache]:
        """Attention of new tokens over the cache, which they join at their positions.

        What is not ``valid`` needs no care here: it may lie in the cache until its position is taken by a token.
        """

        def attend(q, k, v, positions, keys, values):
            keys, values = _joined(keys, k, positions, 3), _joined(values, v, positions, 2)
            return cached_attention(q, keys, values, positions, scale=score_scale(self.arch)), keys, values

        own, shared = head_axes(self.arch.heads, self.arch.kv_heads)
        new, old = ("batch", None, shared, None), ("batch", shared, None, None)
        queries = ("batch", None, own, None)
        axes = [queries, new, new, ("batch", None), old, old]
        arrays = *self._project(x, rotation), positions, cache["keys"], cache["values"]
        mixed, keys, values = each_part(attend, arrays, axes, [queries, old, old])
        return self._out(mixed), {"keys": keys, "values": values}

    def _project(self, x, rotation):
        arch = self.arch
        q, k, v = linear(x, self.q), linear(x, self.k), linear(x, self.v)
        if arch.attention_bias:
            q, k, v = (y + b[...].astype(x.dtype) for y, b in ((q, self.q_bias), (k, self.k_bias), (v, self.v_bias)))
        if arch.qk_norm == "joint":
            q, k = self._normed(q, k)
        q, k, v = (y.reshape(*x.shape[:2], -1, arch.head_dim) for y in (q, k, v))
        if arch.qk_norm == "head":
            q, k = self._normed(q, k)
        return rotate(q, rotation, arch.rotary_pairs), rotate(k, rotation, arch.rotary_pairs), v

    def _normed(self, q, k):
        eps = self.arch.norm_eps
        return rms_norm(q, self.q_norm[...], eps), rms_norm(k, self.k_norm[...], eps)

    def _out(self, mixed):
        return linear(mixed.reshape(*mixed.shape[:2], -1), self.o)


FEW_ROWS = 16  # of a device, up to which a new entry is written row after row


def _joined(memory, new, positions, axis):
    """A cache whose rows take in new entries ``[batch, new, heads, dim]`` at their positions, which lie along ``axis``.

    One entry in each of few rows is written in place, row after row: for a scatter XLA's TPU compiler lays the whole
    cache out anew.
    """
    if new.shape[1] > 1 or len(new) > FEW_ROWS:
        row = jnp.arange(len(new))[:, None]
        return memory.at[row, :, :, positions].set(new) if axis == 3 else memory.at[row, :, positions].set(new)
    entries = jnp.moveaxis(new, 1, axis).astype(memory.dtype)
    for row in range(len(new)):
        start = [row, 0, 0, 0]
        start[axis] = positions[row, 0]
        memory = jax.lax.dynamic_update_slice(memory, entries[row : row + 1], start)
    return memory
