"""Log-probability of chosen tokens, and the entropy they were chosen from, straight from hidden states.

With z = hidden · head / T, p = softmax(z) and e the target, and g the gradient of the log-probability,

    log p_e = z_e - log Σ exp z              H = -Σ p log p
    d hidden = g/T (e - p) headᵀ             d head = hiddenᵀ g/T (e - p)

What is kept for the backward pass is a number a token, log Σ exp z; logits are formed again. A vocabulary that is split
over devices needs only the three statistics (log Σ exp z, z_e, H) of each part:

    L = log Σ_s exp L_s         H = Σ_s exp(L_s - L) (L - L_s + H_s)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.backends import choose
from pallas_kernels.token_logprobs import gpu, slices, tpu, xla
from pallas_kernels.token_logprobs.reference import token_logprobs_definition


def token_logprobs(
    hidden: Float[Array, "batch length hidden"],
    head: Float[Array, "hidden vocab"],
    targets: Int[Array, "batch length"],
    *,
    temperature: Float[Array, "batch length"] | float = 1.0,
    chunk: int | None = None,
    axis_name: str | None = None,
    backend: str | None = None,
) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
    """log softmax(hidden · head / temperature)[targets] and the entropy of that softmax, both in float32 (nats).

    ``[batch, length, vocab]`` never exists for large vocabularies. No gradient flows through the entropy, nor to the
    temperature.

    Args:
      hidden: ``[batch, length, hidden]``.
      head: ``[hidden, vocab]``; under ``shard_map`` with ``axis_name``, this device's part of the vocabulary.
      targets: ``[batch, length]``, of the whole vocabulary.
      temperature: T, for all tokens or for each.
      chunk: for "xla", tokens whose logits exist at one time; by default 16 million logits' worth on each device.
      axis_name: the axis of the mesh over which the vocabulary is split, in order; None if it is not.
      backend: "tpu", "gpu" (Pallas), "xla", "definition" (all logits); None chooses by the device.

    Raises:
      ValueError: an unknown backend, or one that cannot take the shapes.
    """
    why_not = {
        "tpu": tpu.why_not(hidden),
        "gpu": gpu.why_not(hidden, head),
        "xla": None,
        "definition": axis_name and "its vocabulary cannot be split",
    }
    backend = choose("token_logprobs", backend, why_not)
    if backend == "definition":
        return token_logprobs_definition(hidden, head, targets, temperature)
    inverse = jnp.broadcast_to(1.0 / jnp.asarray(temperature, jnp.float32), targets.shape)
    if axis_name is not None:
        targets = targets - jax.lax.axis_index(axis_name) * head.shape[1]
    return _logprobs(hidden, head, targets, inverse, chunk, axis_name, backend)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _logprobs(hidden, head, targets, inverse, chunk, axis_name, backend):
    return _forward(hidden, head, targets, inverse, chunk, axis_name, backend)[0]


def _forward(hidden, head, targets, inverse, chunk, axis_name, backend):
    if backend in ("tpu", "gpu"):
        native = tpu if backend == "tpu" else gpu
        found, logits = native.statistics(hidden, head, targets, inverse), None
    else:
        found, logits = xla.statistics(hidden, head, targets, inverse, chunk)
    normaliser, chosen, entropy = found if axis_name is None else _joined(*found, axis_name)
    return (chosen - normaliser, entropy), (hidden, head, targets, inverse, normaliser, logits)


def _joined(normaliser, chosen, entropy, axis_name):
    parts = jax.lax.all_gather(normaliser, axis_name)
    whole = jax.nn.logsumexp(parts, axis=0)
    share = jnp.exp(normaliser - whole)
    entropy = jax.lax.psum(share * (whole - normaliser + entropy), axis_name)
    return whole, jax.lax.psum(chosen, axis_name), entropy


def _backward(chunk, axis_name, backend, saved, gradients):
    hidden, head, targets, inverse, normaliser, logits = saved
    scale = gradients[0] * inverse
    if backend in ("tpu", "gpu"):
        d_hidden, d_head = slices.gradient(hidden, head, targets, inverse, normaliser, scale)
    else:
        d_hidden, d_head = xla.gradient(hidden, head, targets, inverse, normaliser, scale, logits, chunk)
    if axis_name is not None:
        d_hidden = jax.lax.psum(d_hidden, axis_name)
    return d_hidden.astype(hidden.dtype), d_head.astype(head.dtype), None, None


_logprobs.defvjp(_forward, _backward)
