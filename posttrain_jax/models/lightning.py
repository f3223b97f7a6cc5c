"""The attention of MiniMax-M1's linear layers: lightning attention between a SiLU projection and an output gate."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import lightning_attention
from pallas_kernels.lightning_attention import decay_slopes, lightning_step
from posttrain_jax.models.architecture import Architecture
from posttrain_jax.models.parts import constant, linear, parameter, rms_norm
from posttrain_jax.models.rope import Rotation
from posttrain_jax.parallel.lightning import segment_lightning
from posttrain_jax.parallel.placement import each_part

NORM_EPS = 1e-6  # of the norm before the gate, whatever the model's own (released modelling code)


class LightningAttention(nnx.Module):
    """out(sigmoid(x W_gate) ⊙ norm(o)) with o from q, k, v = silu(x W_qkv), head by head (MiniMax-01, 2501.08313, 2.2).

    No rotary embedding, no softmax, no scale: positions enter by a decay that differs from head to head and layer to
    layer. What decoding keeps is one ``[head_dim, head_dim]`` float32 state a head, however long the sequence.
    """

    def __init__(self, arch: Architecture, *, rngs: nnx.Rngs, dtype: jnp.dtype, stack: tuple[int, ...] = ()):
        self.arch = arch
        names = ("layers",) * len(stack)
        hidden, width = arch.hidden, arch.heads * arch.head_dim
        into = lambda out: ((*stack, hidden, out), (*names, "embed", "heads"))  # noqa: E731
        out_std = width**-0.5 / (2 * arch.layers) ** 0.5
        self.qkv = parameter(rngs, *into(3 * width), stddev=hidden**-0.5, dtype=dtype)
        self.gate = parameter(rngs, *into(width), stddev=hidden**-0.5, dtype=dtype)
        self.norm = constant(1.0, (*stack, width), (*names, "norm"), dtype=dtype)
        self.o = parameter(rngs, (*stack, width, hidden), (*names, "heads", "embed"), stddev=out_std, dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "batch length hidden"],
        rotation: Rotation,
        segment_ids: Int[Array, "batch length"],
        layer: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "batch length hidden"], None]:
        """Attention inside the segments of packed rows, decaying as ``layer`` does; there are no logits to tell of."""
        mixed = segment_lightning(*self._project(x), self._log_decay(layer), segment_ids)
        return self._out(x, mixed), None

    def empty_cache(self, batch: int, length: int, dtype: str) -> dict[str, Any]:
        """The state before any token; it takes no room for positions."""
        dim = self.arch.head_dim
        return {"state": jnp.zeros((batch, self.arch.heads, dim, dim), jnp.float32)}

    def extend(
        self,
        x: Float[Array, "batch new hidden"],
        rotation: Rotation,
        positions: Int[Array, "batch new"],
        valid: Bool[Array, "batch new"] | None,
        layer: Int[Array, ""] | int,
        cache: dict[str, Any],
    ) -> tuple[Float[Array, "batch new hidden"], dict[str, Any]]:
        """Attention of new tokens given the state, which only the ``valid`` ones change."""
        q, k, v = self._project(x)
        state = ("batch", "heads", None, None)
        if x.shape[1] == 1:
            arrays = q[:, 0], k[:, 0], v[:, 0], self._log_decay(layer), cache["state"]
            one = ("batch", "heads", None)
            mixed, kept = each_part(lightning_step, arrays, [one, one, one, ("heads",), state], [one, state])
            kept = kept if valid is None else jnp.where(valid[..., None, None], kept, cache["state"])
            return self._out(x, mixed[:, None]), {"state": kept}

        def attend(q, k, v, log_decay, segments, state):
            return lightning_attention(q, k, v, log_decay, segment_ids=segments, initial_state=state)

        segments = jnp.ones_like(positions) if valid is None else valid.astype(jnp.int32)
        arrays = q, k, v, self._log_decay(layer), segments, cache["state"]
        many = ("batch", None, "heads", None)
        axes = [many, many, many, ("heads",), ("batch", None), state]
        mixed, kept = each_part(attend, arrays, axes, [many, state])
        return self._out(x, mixed), {"state": kept}

    def _log_decay(self, layer):
        depth = layer / max(self.arch.layers - 1, 1)
        return jnp.asarray(-decay_slopes(self.arch.heads) * (1 - depth + 1e-5))

    def _project(self, x):
        qkv = jax.nn.silu(linear(x, self.qkv)).reshape(*x.shape[:2], self.arch.heads, 3, self.arch.head_dim)
        return qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]

    def _out(self, x, mixed):
        mixed = rms_norm(mixed.astype(x.dtype).reshape(*x.shape[:2], -1), self.norm[...], NORM_EPS)
        return linear(jax.nn.sigmoid(linear(x, self.gate)) * mixed, self.o)
