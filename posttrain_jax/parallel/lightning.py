"""Lightning attention on a mesh: rows over the data axes, heads over "tensor", lengths over "context"."""

from __future__ import annotations

from functools import partial

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels import lightning_attention
from pallas_kernels.lightning_attention import context_lightning_attention
from posttrain_jax.parallel.placement import along, current


def segment_lightning(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length heads head_dim"],
    v: Float[Array, "batch length heads head_dim"],
    log_decay: Float[Array, " heads"],
    segment_ids: Int[Array, "batch length"],
) -> Float[Array, "batch length heads head_dim"]:
    """Lightning attention inside each segment of packed rows; where lengths are split, only states are sent."""
    place = current()
    if place is None:
        return lightning_attention(q, k, v, log_decay, segment_ids=segment_ids)[0]
    part = place.spec(("batch", "length", "heads", None), q.shape)
    lengths, heads = along(part, 1), along(part, 2)
    attend = partial(context_lightning_attention, axis_name=lengths[0]) if lengths else lightning_attention

    def local(q, k, v, log_decay, segment_ids):
        return attend(q, k, v, log_decay, segment_ids=segment_ids)[0]

    into = (part, part, part, jax.P(heads), jax.P(*part[:2]))
    run = jax.shard_map(local, mesh=place.mesh, in_specs=into, out_specs=part, check_vma=False)
    return run(q, k, v, log_decay, segment_ids)
