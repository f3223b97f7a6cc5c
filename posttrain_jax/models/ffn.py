"""The feed-forward network without experts, or that every token shares."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posttrain_jax.models.parts import linear, parameter


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate x) ⊙ up x) (arXiv 2002.05202)."""

    def __init__(
        self, hidden: int, width: int, depth: int, *, rngs: nnx.Rngs, dtype: jnp.dtype, stack: tuple[int, ...] = ()
    ):
        names = ("layers",) * len(stack)
        into, out_of = (*stack, hidden, width), (*stack, width, hidden)
        std, down_std = hidden**-0.5, width**-0.5 / (2 * depth) ** 0.5
        self.gate = parameter(rngs, into, (*names, "embed", "ffn"), stddev=std, dtype=dtype)
        self.up = parameter(rngs, into, (*names, "embed", "ffn"), stddev=std, dtype=dtype)
        self.down = parameter(rngs, out_of, (*names, "ffn", "embed"), stddev=down_std, dtype=dtype)

    def __call__(self, x: Float[Array, "batch length hidden"]) -> Float[Array, "batch length hidden"]:
        """Each token alone."""
        return linear(jax.nn.silu(linear(x, self.gate)) * linear(x, self.up), self.down)
