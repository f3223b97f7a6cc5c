"""Multi-token prediction: one more layer that sees a token ahead and predicts the one after it (DeepSeek-V3, 2.2)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from posttrain_jax.models.architecture import Architecture
from posttrain_jax.models.layer import Layer
from posttrain_jax.models.parts import constant, linear, parameter, rms_norm
from posttrain_jax.models.rope import Rotation


class NextToken(nnx.Module):
    """norm(layer(W [norm(embedding of t+1) ; norm(hidden of t)])): the state the main head reads t+2 from."""

    def __init__(self, arch: Architecture, *, rngs: nnx.Rngs, dtype: jnp.dtype, qat: str = "none"):
        self.arch = arch
        hidden = arch.hidden
        self.embed_norm = constant(1.0, (hidden,), ("norm",), dtype=dtype)
        self.hidden_norm = constant(1.0, (hidden,), ("norm",), dtype=dtype)
        std = (2 * hidden) ** -0.5
        self.join = parameter(rngs, (2 * hidden, hidden), (None, "embed"), stddev=std, dtype=dtype)
        self.layer = Layer(arch, arch.kind(arch.layers), rngs=rngs, dtype=dtype, qat=qat)
        self.norm = constant(1.0, (hidden,), ("norm",), dtype=dtype)

    def __call__(
        self,
        trunk: Float[Array, "batch length hidden"],
        following: Float[Array, "batch length hidden"],
        rotation: Rotation,
        segment_ids: Int[Array, "batch length"],
    ) -> Float[Array, "batch length hidden"]:
        """``trunk`` leaves the last layer before the final norm; ``following`` embeds the token after each position."""
        x, _ = self.layer(self._joined(trunk, following), rotation, segment_ids, self.arch.layers)
        return rms_norm(x, self.norm[...], self.arch.norm_eps)

    def extend(
        self,
        trunk: Float[Array, "batch new hidden"],
        following: Float[Array, "batch new hidden"],
        rotation: Rotation,
        positions: Int[Array, "batch new"],
        cache: Any,
    ) -> tuple[Float[Array, "batch new hidden"], Any]:
        """The same for new positions, given what the layer's attention keeps of those before."""
        x = self._joined(trunk, following)
        x, cache = self.layer.extend(x, rotation, positions, None, self.arch.layers, cache)
        return rms_norm(x, self.norm[...], self.arch.norm_eps), cache

    def _joined(self, trunk, following):
        eps = self.arch.norm_eps
        both = [rms_norm(following, self.embed_norm[...], eps), rms_norm(trunk, self.hidden_norm[...], eps)]
        return linear(jnp.concatenate(both, axis=-1), self.join)
