"""Lightning attention token by token: the maths, and the step of decoding (MiniMax-01, arXiv 2501.08313, 2.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.lightning_attention.segments import counts


def lightning_step(
    q: Float[Array, "batch heads head_dim"],
    k: Float[Array, "batch heads head_dim"],
    v: Float[Array, "batch heads head_dim"],
    log_decay: Float[Array, " heads"],
    state: Float[Array, "batch heads head_dim head_dim"],
) -> tuple[Float[Array, "batch heads head_dim"], Float[Array, "batch heads head_dim head_dim"]]:
    """S ← exp(log_decay) S + k vᵀ, o = qᵀ S; the state is float32, the output in the format of ``q``."""
    k32, v32 = k.astype(jnp.float32), v.astype(jnp.float32)
    state = jnp.exp(log_decay)[:, None, None] * state + k32[..., :, None] * v32[..., None, :]
    return jnp.einsum("bhk,bhkv->bhv", q.astype(jnp.float32), state).astype(q.dtype), state


def lightning_attention_definition(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length heads head_dim"],
    v: Float[Array, "batch length heads head_dim"],
    log_decay: Float[Array, " heads"],
    segment_ids: Int[Array, "batch length"],
    initial_state: Float[Array, "batch heads head_dim head_dim"],
) -> tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads head_dim head_dim"]]:
    """The recurrence: a step a token, a zero state at the start of each sequence but the first, nothing for padding."""
    real, _, sequence = counts(segment_ids)
    started = jnp.pad(sequence[:, 1:] != sequence[:, :-1], ((0, 0), (1, 0)))

    def step(state, token):
        q, k, v, real, started = token
        state = jnp.where(started[:, None, None, None], 0.0, state)
        out, after = lightning_step(q, k, v, log_decay, state)
        real = real[:, None, None]
        return jnp.where(real[..., None], after, state), jnp.where(real, out, 0.0).astype(q.dtype)

    tokens = jax.tree.map(lambda x: x.swapaxes(0, 1), (q, k, v, real, started))
    state, out = jax.lax.scan(step, initial_state, tokens)
    return out.swapaxes(0, 1), state
