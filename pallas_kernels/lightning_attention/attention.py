"""Lightning attention: linear attention with a fixed decay a head. Its gradient is lightning attention again.

With w_ij = exp(λ (n_i - n_j)) for tokens j ≤ i of one sequence (n counts tokens, λ ≤ 0 is the log decay) the output is

    o_i = Σ_{j ≤ i} w_ij (q_i · k_j) v_j  =  attend(q, k, v)

and with g the gradient of o

    dq_i = Σ_{j ≤ i} w_ij (g_i · v_j) k_j  =  attend(g, v, k)
    dk_j = Σ_{i ≥ j} w_ij (v_j · g_i) q_i  =  attend backwards in time (v, g, q)
    dv_j = Σ_{i ≥ j} w_ij (k_j · q_i) g_i  =  attend backwards in time (k, q, g)

So one recurrence, run in either direction, is the whole kernel; nothing of the forward pass is kept but its arguments
and output, and memory grows with the length alone.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.backends import choose
from pallas_kernels.lightning_attention import gpu, tpu, xla
from pallas_kernels.lightning_attention.reference import lightning_attention_definition
from pallas_kernels.lightning_attention.segments import counts, layout

FORMS = {"xla": xla, "tpu": tpu, "gpu": gpu}


def lightning_attention(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length heads head_dim"],
    v: Float[Array, "batch length heads head_dim"],
    log_decay: Float[Array, " heads"],
    *,
    segment_ids: Int[Array, "batch length"] | None = None,
    initial_state: Float[Array, "batch heads head_dim head_dim"] | None = None,
    chunk: int | None = None,
    backend: str | None = None,
) -> tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads head_dim head_dim"]]:
    """o_t = q_tᵀ S_t with S_t = exp(log_decay) S_{t-1} + k_t v_tᵀ: no softmax, no scale, linear in the length.

    Args:
      q, k, v: ``[batch, length, heads, head_dim]``, float32 or bfloat16; the state is float32 in any case.
      log_decay: ``[heads]``, at most 0.
      segment_ids: ``[batch, length]``; the state starts anew with every sequence of a packed row, and 0 is padding,
        which changes no state and whose output is 0. None: one sequence, no padding.
      initial_state: float32 state that the first sequence goes on from; None is zero.
      chunk: tokens worked on together; None takes the backend's own.
      backend: "tpu" and "gpu" (Pallas), "xla" (a scan over chunks), "definition" (token by token); None chooses by the
        device.

    Returns:
      The outputs in the format of ``q``, and the float32 state after the last token.

    Raises:
      ValueError: an unknown backend, or one that cannot take the shapes.
    """
    batch, length, heads, dim = q.shape
    if segment_ids is None:
        segment_ids = jnp.ones((batch, length), jnp.int32)
    if initial_state is None:
        initial_state = jnp.zeros((batch, heads, dim, dim), jnp.float32)
    why_not = {name: form.why_not(q, chunk) for name, form in FORMS.items()}
    backend = choose("lightning_attention", backend, {**why_not, "definition": None})
    if backend == "definition":
        return lightning_attention_definition(q, k, v, log_decay, segment_ids, initial_state)
    chunk = chunk or FORMS[backend].default_chunk(length)
    log_decay = jnp.asarray(log_decay, jnp.float32)
    return _attention(q, k, v, log_decay, segment_ids, initial_state.astype(jnp.float32), chunk, backend)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attention(q, k, v, log_decay, segment_ids, initial_state, chunk, backend):
    return _forward(q, k, v, log_decay, segment_ids, initial_state, chunk, backend)[0]


def _forward(q, k, v, log_decay, segment_ids, initial_state, chunk, backend):
    attend = FORMS[backend].attend
    out, state = attend(q, k, v, log_decay, layout(segment_ids, chunk), initial_state, chunk=chunk)
    return (out, state), (q, k, v, log_decay, segment_ids, initial_state, out, state)


def _backward(chunk, backend, saved, gradients):
    q, k, v, log_decay, segment_ids, initial_state, out, state = saved
    d_out, d_state = gradients
    d_out = d_out.astype(q.dtype)
    attend = partial(FORMS[backend].attend, chunk=chunk)
    where = log_decay, layout(segment_ids, chunk)
    d_q, _ = attend(d_out, v, k, *where, initial_state.mT)
    d_k, _ = attend(v, d_out, q, *where, d_state.mT, reverse=True)
    d_v, d_initial = attend(k, q, d_out, *where, d_state, reverse=True)
    d_decay = _decay_gradient(segment_ids, (out, d_out), (v, d_v), (state, d_state))
    return d_q, d_k, d_v, d_decay, None, d_initial


_attention.defvjp(_forward, _backward)


def _decay_gradient(segment_ids, outs, values, states):
    """Σ_i n_i g_i · o_i + n_last ⟨dS, S⟩ - Σ_j n_j v_j · dv_j, since dw_ij/dλ = (n_i - n_j) w_ij.

    Ages count from the start of each sequence, which keeps the two sums, whose difference is wanted, small.
    """
    real, age, sequence = counts(segment_ids)
    started = real & (jnp.pad(sequence[:, 1:] != sequence[:, :-1], ((0, 0), (1, 0))))
    age = age - jax.lax.cummax(jnp.where(started, age - 1, 0), axis=1)
    dot = lambda x, y: (x.astype(jnp.float32) * y.astype(jnp.float32)).sum(axis=-1)  # noqa: E731
    tokens = jnp.where(real[..., None], age[..., None] * (dot(*outs) - dot(*values)), 0.0)
    return tokens.sum(axis=(0, 1)) + (age[:, -1:] * dot(*states).sum(axis=-1)).sum(axis=0)
