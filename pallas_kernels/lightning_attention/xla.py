"""The recurrence in plain jnp: a scan over chunks, matrix products inside a chunk.

With S the state at the end of the chunk before, and spans counting tokens,

    o_i = exp(λ since_i) q_iᵀ S  +  Σ_{j ≤ i} exp(λ (n_i - n_j)) (q_i · k_j) v_j
    S'  = exp(λ across) S        +  Σ_j exp(λ until_j) k_j v_jᵀ

where every sum and the state itself keep to one sequence. Backwards in time the sums run over j ≥ i, and the two
spans change places. No exponent is ever positive, so nothing overflows however fast a head forgets.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.lightning_attention.segments import Layout


def why_not(q: Float[Array, "batch length heads head_dim"], chunk: int | None) -> None:
    """Any shape will do."""


def default_chunk(length: int) -> int:
    """256, or the whole of a shorter row."""
    return min(256, length)


def attend(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length heads head_dim"],
    v: Float[Array, "batch length heads head_dim"],
    log_decay: Float[Array, " heads"],
    where: Layout,
    state: Float[Array, "batch heads head_dim head_dim"],
    *,
    chunk: int,
    reverse: bool = False,
) -> tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads head_dim head_dim"]]:
    """The outputs, and the state at the far end; ``reverse`` runs from the last token to the first."""
    batch, length, heads, dim = q.shape
    padded = where.age.shape[1]
    cut = lambda x: jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)  # noqa: E731
    pad = lambda x: jnp.pad(x, ((0, 0), (0, padded - length), (0, 0), (0, 0)))  # noqa: E731
    rate = log_decay[:, None]

    def each(state, piece):
        q, k, v, where = piece
        real = where.real[:, None, :, None]
        q, k, v = (x.astype(jnp.float32).swapaxes(1, 2) for x in (q, k, v))  # [batch, heads, chunk, dim]
        k, v = jnp.where(real, k, 0.0), jnp.where(real, v, 0.0)
        index = jnp.arange(chunk)
        behind = index[:, None] <= index if reverse else index[:, None] >= index
        together = (where.sequence[:, :, None] == where.sequence[:, None, :]) & behind
        span = jnp.abs(where.age[:, :, None] - where.age[:, None, :])
        near, far = (where.until, where.since) if reverse else (where.since, where.until)
        weights = _decay(rate, jnp.where(together, span, -1)) * jnp.einsum("bhid,bhjd->bhij", q, k)
        out = jnp.einsum("bhij,bhjd->bhid", weights, v)
        out += _decay(rate, near)[..., None] * jnp.einsum("bhik,bhkv->bhiv", q, state)
        joined = jnp.einsum("bhjk,bhjv->bhkv", k * _decay(rate, far)[..., None], v)
        state = _decay(rate, where.across[:, :1])[..., None] * state + joined
        return state, jnp.where(real, out, 0.0).swapaxes(1, 2)

    pieces = jax.tree.map(cut, (pad(q), pad(k), pad(v), where))
    state, out = jax.lax.scan(each, state, pieces, reverse=reverse)
    return jnp.moveaxis(out, 0, 1).reshape(batch, padded, heads, dim)[:, :length].astype(q.dtype), state


def _decay(rate, span):
    """exp(λ span) ``[batch, heads, …]``, 0 where the span is negative."""
    rate = rate.reshape(1, -1, *(1,) * (span.ndim - 1))
    return jnp.where(span[:, None] >= 0, jnp.exp(rate * jnp.maximum(span, 0)[:, None]), 0.0)
