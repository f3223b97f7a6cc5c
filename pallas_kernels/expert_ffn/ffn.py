"""Routed SwiGLU experts over their own tokens alone, forward and backward, without a visit to the host.

    rows   = tokens sorted by expert                          (dispatch)
    a, b   = rows gate_e, rows up_e                           (one grouped pass, with the next line in it)
    inner  = silu(a) ⊙ b
    y_t    = Σ_k w_tk (inner down_e)[row of (t, k)]           (grouped product, combine)

and backward, with g the gradient of y and s(a) = a σ(a):

    d_out  = w g, sorted                   d_down = innerᵀ d_out          d_inner = d_out downᵀ
    d_a    = d_inner ⊙ b ⊙ s'(a)           d_gate = rowsᵀ d_a             d_b = d_inner ⊙ s(a),  d_up = rowsᵀ d_b
    d_rows = d_a gateᵀ + d_b upᵀ           (one grouped pass)             d_w = ⟨g, inner down⟩ = ⟨d_inner / w, inner⟩

What is kept for the backward pass is a and b; neither one-hot matrices nor capacity buffers exist.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.expert_ffn.reference import expert_ffn_definition
from pallas_kernels.expert_ffn.rows import combine, dispatch, sort_by_expert, sort_evenly
from pallas_kernels.grouped_matmul.forms import LEAST_BLOCK, choose_form, even_form, form
from pallas_kernels.grouped_matmul.quantized import Quantized

FEW_TOKENS = 128  # up to which two large products with every expert beat the bookkeeping of choosing rows, on a CPU
MOST_BLOCK = 128  # rows that an expert's share is padded to a multiple of


def expert_ffn(
    tokens: Float[Array, "tokens hidden"],
    chosen: Int[Array, "tokens top_k"],
    weights: Float[Array, "tokens top_k"],
    gate: Float[Array, "experts hidden ffn"] | Quantized,
    up: Float[Array, "experts hidden ffn"] | Quantized,
    down: Float[Array, "experts ffn hidden"] | Quantized,
    *,
    backend: str | None = None,
) -> Float[Array, "tokens hidden"]:
    """y = Σ_e w_e · down_e(silu(gate_e x) ⊙ up_e x) over each token's chosen experts.

    Args:
      tokens: ``[tokens, hidden]``.
      chosen, weights: ``[tokens, top_k]``, the experts of each token and their shares in the result; a choice equal
        to the number of experts is none, and adds nothing.
      gate, up, down: the experts' matrices; quantised ones are dequantised in the kernels, and receive no gradient.
      backend: "tpu", "gpu" (Pallas), "xla" (sorted rows, in blocks), "definition" (every expert over every token); None
        chooses by the device, and on a CPU by the number of tokens.

    Raises:
      ValueError: an unknown backend, or one that cannot take the shapes.
    """
    few = backend is None and len(tokens) <= FEW_TOKENS
    backend = choose_form("expert_ffn", backend, gate, tokens.dtype, MOST_BLOCK, others=("definition",))
    if backend == "definition" or (backend == "xla" and few):
        plain = (w.dequantized(tokens.dtype) if isinstance(w, Quantized) else w for w in (gate, up, down))
        return expert_ffn_definition(tokens, chosen, weights, *plain)
    slots, experts = chosen.size, gate.shape[0]
    block = int(np.clip(2 ** np.floor(np.log2(slots / experts / 4 + 1)), LEAST_BLOCK.get(backend, 8), MOST_BLOCK))
    weights = jnp.where(chosen < experts, weights, 0)
    return _ffn(tokens, weights, gate, up, down, chosen, block, backend)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _ffn(tokens, weights, gate, up, down, chosen, block, backend):
    way = form(backend, block)
    slot_of_row, row_of_slot, group_sizes = sort_by_expert(chosen, gate.shape[0], block)
    rows = dispatch(tokens, slot_of_row, row_of_slot.shape[1])
    (inner,) = way.products([rows], [gate, up], group_sizes, lambda a, b: [jax.nn.silu(a) * b])
    (out,) = way.products([inner], [down], group_sizes, lambda x: [x])
    return combine(out, row_of_slot, weights)


def _forward(tokens, weights, gate, up, down, chosen, block, backend):
    way = _training_form(backend, block, gate.shape[0])
    experts = gate.shape[0]
    if way.name == "even":
        slot_of_row, row_of_slot, group_sizes = sort_evenly(chosen, experts, _spare(chosen.size / experts))
    else:
        slot_of_row, row_of_slot, group_sizes = sort_by_expert(chosen, experts, block)
    rows = dispatch(tokens, slot_of_row, row_of_slot.shape[1])
    options = {"outputs": 3} if backend in ("tpu", "gpu") else {}
    a, b, inner = way.products([rows], [gate, up], group_sizes, lambda a, b: [a, b, jax.nn.silu(a) * b], **options)
    (out,) = way.products([inner], [down], group_sizes, lambda x: [x])
    saved = (tokens, weights, gate, up, down, slot_of_row, row_of_slot, group_sizes, a, b)
    return combine(out, row_of_slot, weights), saved


def _backward(block, backend, saved, gradient):
    tokens, weights, gate, up, down, slot_of_row, row_of_slot, group_sizes, a, b = saved
    way, top_k = _training_form(backend, block, gate.shape[0]), row_of_slot.shape[1]
    matrices = [w.dequantized(tokens.dtype) if isinstance(w, Quantized) else w for w in (gate, up, down)]

    spread = dispatch(gradient, slot_of_row, top_k)
    share = jnp.append(weights.reshape(-1), jnp.zeros(1, weights.dtype))[slot_of_row][:, None].astype(jnp.float32)
    options = {"outputs": 3} if backend == "tpu" else {}
    d_a, d_b, shared_inner, of_row = way.products(
        [spread], matrices[2:], group_sizes, _gate_gradient, transposed=True, beside=[a, b, share], sums=1, **options
    )
    d_weights = of_row[row_of_slot, 0].astype(weights.dtype)

    (d_rows,) = way.products([d_a, d_b], matrices[:2], group_sizes, None, transposed=True)

    def matrix_gradient(w, lhs, rhs):
        return None if isinstance(w, Quantized) else way.transposed_product(lhs, rhs, group_sizes, dtype=w.dtype)

    rows = dispatch(tokens, slot_of_row, top_k)
    d_gate, d_up = matrix_gradient(gate, rows, d_a), matrix_gradient(up, rows, d_b)
    d_down = matrix_gradient(down, shared_inner, spread)
    return combine(d_rows, row_of_slot), d_weights, d_gate, d_up, d_down, None


def _training_form(backend, block, experts):
    return even_form(experts) if backend == "xla" else form(backend, block, training=True)


def _spare(share):
    """Rows of a block of even groups. A group has room for one more than its share, multiplied whether used or not.

    Shares that fall by chance have a standard deviation of their root: the spare block takes 1 to 2 of those.
    """
    return int(np.clip(2 ** np.floor(np.log2(2 * share**0.5)), 8, MOST_BLOCK))


_ffn.defvjp(_forward, _backward)


def _gate_gradient(d_inner, a, b, share):
    """d_a, d_b, w · inner, and what sums up to d_w; ``d_inner`` is before its weight ``share``."""
    a, b = a.astype(d_inner.dtype), b.astype(d_inner.dtype)
    sigma = jax.nn.sigmoid(a)
    silu, shared = a * sigma, d_inner * share.astype(d_inner.dtype)
    inner = silu * b
    slope = sigma * (1 + a * (1 - sigma))
    return shared * b * slope, shared * silu, inner * share.astype(inner.dtype), d_inner * inner
