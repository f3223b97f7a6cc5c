"""Sparse mixture of experts: dropless top-k of sigmoid or softmax scores (DeepSeek-V3, arXiv 2412.19437, 2.1.2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import Quantized
from posttrain_jax.models.architecture import Architecture
from posttrain_jax.models.ffn import FeedForward
from posttrain_jax.models.parts import constant, linear, parameter
from posttrain_jax.parallel.experts import experts
from posttrain_jax.quant import int4


class Routing(NamedTuple):
    """Where a layer sent its tokens: the experts chosen, and the score of every expert."""

    chosen: Int[Array, "batch length top_k"]
    scores: Float[Array, "batch length experts"]


def route(
    logits: Float[Array, "*tokens experts"],
    bias: Float[Array, " experts"] | None,
    top_k: int,
    *,
    scoring: str = "sigmoid",
    scaling: float = 1.0,
    replayed: Int[Array, "*tokens top_k"] | None = None,
) -> tuple[Int[Array, "*tokens top_k"], Float[Array, "*tokens top_k"], Float[Array, "*tokens experts"]]:
    """Chooses the top-k of scores + bias; weighs them by their scores alone, renormalised to sum to ``scaling``.

    The scores are sigmoid(logits) or softmax(logits). The bias steers the choice and never the weights, so it receives
    no gradient. Where a choice is ``replayed`` (-1 is none) it stands instead; the weights are those of these scores.

    Returns:
      The experts chosen, their weights, and all scores.
    """
    scores = jax.nn.sigmoid(logits) if scoring == "sigmoid" else jax.nn.softmax(logits, axis=-1)
    _, chosen = jax.lax.top_k(jax.lax.stop_gradient(scores if bias is None else scores + bias), top_k)
    chosen = chosen if replayed is None else jnp.where(replayed < 0, chosen, replayed)
    weights = jnp.take_along_axis(scores, chosen, axis=-1)
    return chosen, scaling * weights / (weights.sum(axis=-1, keepdims=True) + 1e-20), scores


class MixtureOfExperts(nnx.Module):
    """Routed SwiGLU experts, and shared ones where the architecture has them.

    The routed ones' matrices may be `Quantized`. With ``qat="int4"`` they are plain and compute as INT4 would.
    """

    def __init__(
        self, arch: Architecture, *, rngs: nnx.Rngs, dtype: jnp.dtype, stack: tuple[int, ...] = (), qat: str = "none"
    ):
        self.arch, self.qat = arch, qat
        names = ("layers",) * len(stack)
        number, hidden, ffn = arch.experts, arch.hidden, arch.expert_ffn
        std, down_std = hidden**-0.5, ffn**-0.5 / (2 * arch.layers) ** 0.5
        inward, outward = (*names, "expert", "embed", "expert_ffn"), (*names, "expert", "expert_ffn", "embed")
        self.router = parameter(rngs, (*stack, hidden, number), (*names, "embed", None), stddev=std, dtype=jnp.float32)
        if arch.selection_bias:
            self.bias = constant(0.0, (*stack, number), (*names, None), dtype=jnp.float32)
        self.gate = parameter(rngs, (*stack, number, hidden, ffn), inward, stddev=std, dtype=dtype)
        self.up = parameter(rngs, (*stack, number, hidden, ffn), inward, stddev=std, dtype=dtype)
        self.down = parameter(rngs, (*stack, number, ffn, hidden), outward, stddev=down_std, dtype=dtype)
        if arch.shared_experts:
            width = arch.shared_experts * ffn
            self.shared = FeedForward(hidden, width, arch.layers, rngs=rngs, dtype=dtype, stack=stack)

    def __call__(
        self, x: Float[Array, "batch length hidden"], replayed: Int[Array, "batch length top_k"] | None = None
    ) -> tuple[Float[Array, "batch length hidden"], Routing]:
        """y = Σ_e w_e · down_e(silu(gate_e x) ⊙ up_e x) over each token's chosen experts, plus the shared experts."""
        arch = self.arch
        logits = linear(x.astype(jnp.float32), self.router)
        bias = self.bias[...] if arch.selection_bias else None
        top_k, scaling = arch.experts_per_token, arch.routed_scaling
        chosen, weights, scores = route(logits, bias, top_k, scoring=arch.scoring, scaling=scaling, replayed=replayed)
        matrices = [self._matrices(w, x.dtype) for w in (self.gate, self.up, self.down)]
        mixed = experts(x, chosen, weights.astype(x.dtype), *matrices)
        return mixed + self.shared(x) if arch.shared_experts else mixed, Routing(chosen, scores)

    def _matrices(self, weight: nnx.Param, dtype: jnp.dtype) -> Float[Array, "experts inner outer"] | Quantized:
        held = weight.get_value()
        if isinstance(held, Quantized):
            return held
        return (int4.fake_quantized_experts(held) if self.qat == "int4" else held).astype(dtype)
