"""One decoder layer: attention and feed-forward network, each with its norm and its way into the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from posttrain_jax.models.architecture import DENSE, LIGHTNING, Architecture, LayerKind
from posttrain_jax.models.attention import GroupedQueryAttention
from posttrain_jax.models.ffn import FeedForward
from posttrain_jax.models.latent_attention import LatentAttention
from posttrain_jax.models.lightning import LightningAttention
from posttrain_jax.models.moe import MixtureOfExperts, Routing
from posttrain_jax.models.parts import constant, rms_norm
from posttrain_jax.models.rope import Rotation

ATTENDED = "attended"  # what leaves a layer's lightning attention, by name for `jax.checkpoint`


class Seen(NamedTuple):
    """What a layer did with a batch, beside its output.

    Attributes:
      routing: where the tokens of its experts went; None for a dense layer.
      peaks: the largest attention logit of each head, padding left out; None without softmax attention.
    """

    routing: Routing | None
    peaks: Float[Array, " heads"] | None


class Layer(nnx.Module):
    """Pre-norm: x + f(norm(x)), twice. Post-norm (MiniMax-M1): α·norm(x) + β·f(norm(x)), twice."""

    def __init__(
        self,
        arch: Architecture,
        kind: LayerKind,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
        stack: tuple[int, ...] = (),
        qat: str = "none",
    ):
        self.arch, self.kind = arch, kind
        names = ("layers",) * len(stack)
        softmax = LatentAttention if arch.kv_rank else GroupedQueryAttention
        attention = LightningAttention if kind.attention == LIGHTNING else softmax
        self.attention_norm = constant(1.0, (*stack, arch.hidden), (*names, "norm"), dtype=dtype)
        self.attention = attention(arch, rngs=rngs, dtype=dtype, stack=stack)
        self.ffn_norm = constant(1.0, (*stack, arch.hidden), (*names, "norm"), dtype=dtype)
        if kind.ffn == DENSE:
            self.ffn = FeedForward(arch.hidden, arch.dense_ffn, arch.layers, rngs=rngs, dtype=dtype, stack=stack)
        else:
            self.ffn = MixtureOfExperts(arch, rngs=rngs, dtype=dtype, stack=stack, qat=qat)

    def __call__(
        self,
        x: Float[Array, "batch length hidden"],
        rotation: Rotation,
        segment_ids: Int[Array, "batch length"],
        layer: Int[Array, ""] | int,
        replayed: Int[Array, "batch length top_k"] | None = None,
    ) -> tuple[Float[Array, "batch length hidden"], Seen]:
        """The layer over packed rows, and what is to be seen of it; ``layer`` is its number in the model.

        ``replayed`` are experts to send the tokens to, -1 for the router's own choice.
        """
        attend = self.attention
        x, peaks, routing = self._around(x, lambda normed: attend(normed, rotation, segment_ids, layer), replayed)
        return x, Seen(routing, peaks)

    def empty_cache(self, batch: int, length: int, dtype: str, routing: bool = False) -> dict[str, Any]:
        """What its attention keeps of no tokens, and with ``routing`` the experts chosen, -1 where there is none."""
        memory = self.attention.empty_cache(batch, length, dtype)
        if routing:
            memory["chosen"] = jnp.full((batch, length, self.arch.experts_per_token), -1, jnp.int16)
        return memory

    def extend(
        self,
        x: Float[Array, "batch new hidden"],
        rotation: Rotation,
        positions: Int[Array, "batch new"],
        valid: Bool[Array, "batch new"] | None,
        layer: Int[Array, ""] | int,
        cache: dict[str, Any],
    ) -> tuple[Float[Array, "batch new hidden"], dict[str, Any]]:
        """The layer over new tokens, given what it keeps of those before (`empty_cache`)."""
        attend = self.attention.extend
        x, kept, routing = self._around(x, lambda normed: attend(normed, rotation, positions, valid, layer, cache))
        if "chosen" in cache:
            kept = {**kept, "chosen": cache["chosen"]}
            if routing is not None:
                row, new = jnp.arange(len(x))[:, None], routing.chosen.astype(jnp.int16)
                kept["chosen"] = cache["chosen"].at[row, positions].set(new)
        return x, kept

    def _around(self, x, attend: Callable[[Array], tuple[Array, Any]], replayed: Array | None = None):
        arch = self.arch
        lightning = self.kind.attention == LIGHTNING
        alpha, beta = (arch.lightning_alpha, arch.lightning_beta) if lightning else (arch.full_alpha, arch.full_beta)
        normed = rms_norm(x, self.attention_norm[...], arch.norm_eps)
        mixed, kept = attend(normed)
        mixed = checkpoint_name(mixed, ATTENDED) if lightning else mixed  # softmax attention names its own
        x = alpha * normed + beta * mixed if arch.post_norm else x + mixed
        normed = rms_norm(x, self.ffn_norm[...], arch.norm_eps)
        if isinstance(self.ffn, MixtureOfExperts):
            mixed, routing = self.ffn(normed, replayed)
        else:
            mixed, routing = self.ffn(normed), None
        x = arch.ffn_alpha * normed + arch.ffn_beta * mixed if arch.post_norm else x + mixed
        return x, kept, routing
