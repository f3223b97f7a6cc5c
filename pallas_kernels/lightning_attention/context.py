"""Lightning attention over a row whose length is split over devices: local states, then a prefix over the devices.

Every device runs its part from an empty state. What its tokens still miss is linear in the state S that the parts
before leave behind, o_i += exp(λ n_i) q_iᵀ S for the sequence that goes on, so one all-gather of states is all that is
communicated, however long the row (LASP, arXiv 2404.02882).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.lightning_attention.attention import lightning_attention
from pallas_kernels.lightning_attention.segments import counts


def context_lightning_attention(
    q: Float[Array, "batch part heads head_dim"],
    k: Float[Array, "batch part heads head_dim"],
    v: Float[Array, "batch part heads head_dim"],
    log_decay: Float[Array, " heads"],
    *,
    axis_name: str,
    segment_ids: Int[Array, "batch part"] | None = None,
    chunk: int | None = None,
    backend: str | None = None,
) -> tuple[Float[Array, "batch part heads head_dim"], Float[Array, "batch heads head_dim head_dim"]]:
    """``lightning_attention`` inside ``shard_map``, each device holding the next part of every row.

    Args:
      axis_name: the axis of the mesh over which the length is split, in order.
      segment_ids: this device's part of them; a sequence goes on where the segment of the part before does.
      The rest as for ``lightning_attention``.

    Returns:
      This device's outputs, and the state after the last token of the whole row.
    """
    if segment_ids is None:
        segment_ids = jnp.ones(q.shape[:2], jnp.int32)
    out, state = lightning_attention(q, k, v, log_decay, segment_ids=segment_ids, chunk=chunk, backend=backend)
    real, age, sequence = counts(segment_ids)
    held = real.any(axis=1)
    ends = [jnp.argmax(real, axis=1), real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)]
    first, last = (jnp.take_along_axis(segment_ids, end[:, None], axis=1)[:, 0] for end in ends)
    # how much of the state at its start is left at the end of a part
    rate = jnp.asarray(log_decay, jnp.float32)
    kept = jnp.where(sequence[:, -1:] == 1, jnp.exp(rate * age[:, -1:]), 0.0)

    def pass_on(carry, part):
        state, segment = carry
        added, kept, first, last, held = part
        goes_on = (first == segment) | ~held
        start = jnp.where(goes_on[:, None, None, None], state, 0.0)
        return (added + kept[..., None, None] * start, jnp.where(held, last, segment)), start

    parts = jax.lax.all_gather((state, kept, first, last, held), axis_name)
    (final, _), starts = jax.lax.scan(pass_on, (jnp.zeros_like(state), jnp.zeros_like(first)), parts)
    start = starts[jax.lax.axis_index(axis_name)]
    faded = jnp.where((real & (sequence == 1))[..., None], jnp.exp(rate * age[..., None]), 0.0)
    missed = jnp.einsum("blhk,bhkv->blhv", q.astype(jnp.float32), start) * faded[..., None]
    return (out + missed).astype(q.dtype), final
