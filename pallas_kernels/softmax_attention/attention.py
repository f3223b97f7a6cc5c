"""Causal softmax attention over packed rows; each kernel has a forward and a backward, and the gradient joins them.

With s_ij = scale · q_i·k_j over the keys j ≤ i of the segment of i, and p_ij = exp(s_ij - L_i), L_i = log Σ_j exp s_ij,

    o_i = Σ_j p_ij v_j        δ_i = g_i·o_i        ds_ij = p_ij (g_i·v_j - δ_i)
    dv_j = Σ_i p_ij g_i       dq_i = scale Σ_j ds_ij k_j       dk_j = scale Σ_i ds_ij q_i

(FlashAttention-2, arXiv 2307.08691), so beside arguments and output only L is kept of the forward pass. `KEPT` is the
name of output and L for `jax.checkpoint`: a policy that saves it never runs a forward pass twice.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from pallas_kernels.backends import choose
from pallas_kernels.softmax_attention import tpu, xla
from pallas_kernels.softmax_attention.reference import softmax_attention_definition

KERNELS = {"tpu": tpu}
KEPT = "softmax_attention"


def softmax_attention(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch kv_length kv_heads head_dim"],
    v: Float[Array, "batch kv_length kv_heads value_dim"],
    *,
    scale: float,
    segment_ids: Int[Array, "batch length"] | None = None,
    kv_segment_ids: Int[Array, "batch kv_length"] | None = None,
    query_start: Int[Array, ""] | int = 0,
    backend: str | None = None,
) -> tuple[Float[Array, "batch length heads value_dim"], Float[Array, " heads"]]:
    """softmax(scale · q·kᵀ) v over the keys of a query's segment that are no later than the query.

    Args:
      q, k, v: ``[batch, length, heads, dim]``; groups of query heads share a key/value head.
      segment_ids: of the queries; 0 is padding, which no other token sees and whose output is of no meaning (0 from a
        kernel). None: one sequence, no padding.
      kv_segment_ids: of the keys; None where they are those of the queries.
      query_start: index among the keys of the first query: other than 0 where a device holds a part of the queries.
      backend: "tpu" (Pallas), "xla", "definition" (every score in memory); None chooses by the device.

    Returns:
      The outputs in the format of ``q``, and the largest scale · q·kᵀ that each head saw (-inf if none), which has no
      gradient: what QK-Clip needs, and the softmax has found anyway.

    Raises:
      ValueError: an unknown backend, or one that cannot take the shapes; ``kv_segment_ids`` missing or alone.
    """
    if (segment_ids is None) != (kv_segment_ids is None) and (segment_ids is None or q.shape[1] != k.shape[1]):
        missing = "segment_ids" if segment_ids is None else "kv_segment_ids"
        raise ValueError(f"softmax_attention: {missing} is missing for {q.shape[1]} queries and {k.shape[1]} keys")
    if segment_ids is None:
        segment_ids, kv_segment_ids = (jnp.ones(x.shape[:2], jnp.int32) for x in (q, k))
    elif kv_segment_ids is None:
        kv_segment_ids = segment_ids
    why_not = {"xla": None} | {name: kernel.why_not(q, k, v) for name, kernel in KERNELS.items()}
    backend = choose("softmax_attention", backend, {**why_not, "definition": None})
    if backend not in KERNELS:
        form = xla.attend if backend == "xla" else softmax_attention_definition
        out, peaks = form(q, k, v, segment_ids, kv_segment_ids, query_start, scale=scale)
        return checkpoint_name(out, KEPT), peaks
    return _attention(q, k, v, segment_ids, kv_segment_ids, jnp.int32(query_start), scale, backend)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attention(q, k, v, segment_ids, kv_segment_ids, query_start, scale, backend):
    return _forward(q, k, v, segment_ids, kv_segment_ids, query_start, scale, backend)[0]


def _forward(q, k, v, segment_ids, kv_segment_ids, query_start, scale, backend):
    where = segment_ids, kv_segment_ids, query_start
    out, logsumexp, peaks = KERNELS[backend].forward(q, k, v, *where, scale=scale)
    out, logsumexp = checkpoint_name(out, KEPT), checkpoint_name(logsumexp, KEPT)
    return (out, peaks), (q, k, v, *where, out, logsumexp)


def _backward(scale, backend, saved, gradients):
    q, k, v, *where, out, logsumexp = saved
    g = gradients[0].astype(q.dtype)
    delta = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)  # [batch, heads, length]
    d_q, d_k, d_v = KERNELS[backend].backward(q, k, v, *where, g, logsumexp, delta, scale=scale)
    return d_q, d_k, d_v, None, None, None


_attention.defvjp(_forward, _backward)
