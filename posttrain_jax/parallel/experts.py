"""Routed experts on a mesh: an "expert" group of devices has all matrices, each some.

Three forms of one function, all dropless:

* "gather": every device of a group takes in the tokens of all, runs its own experts, and a reduce-scatter adds the
  parts up. For few tokens, such as a step of decoding, and where devices cannot exchange ragged arrays.
* "ragged": a token goes only where its experts are, in rounds of bounded memory (`rounds`).
* "fetch": tokens stay, and every device takes in all matrices, as FSDP has it. For many tokens: matrices do not wait
  for what came before, so they can travel while the layer's attention runs, and lopsided routing costs nothing.

Inside an expert the inner width lies over "tensor"; for decoding also over axes that part tokens, which then take in
each other's. What other axes part, whole matrices as a rule, is gathered.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import expert_ffn
from pallas_kernels.backends import device_form
from pallas_kernels.grouped_matmul import Quantized
from posttrain_jax.parallel.placement import along, current, summed, whole
from posttrain_jax.parallel.rounds import exchanged_experts

FEW_TOKENS = 2048  # of a group, up to which a gather costs less than rounds of an exchange
MANY_SLOTS = 512  # of a device for each expert, from which matrices are less to send than tokens, on a torus


def experts(
    x: Float[Array, "batch length hidden"],
    chosen: Int[Array, "batch length top_k"],
    weights: Float[Array, "batch length top_k"],
    gate: Float[Array, "experts hidden ffn"] | Quantized,
    up: Float[Array, "experts hidden ffn"] | Quantized,
    down: Float[Array, "experts ffn hidden"] | Quantized,
) -> Float[Array, "batch length hidden"]:
    """y = Σ_e w_e · down_e(silu(gate_e x) ⊙ up_e x) over each token's chosen experts."""
    place = current()
    if place is None:
        return expert_ffn(_flat(x), _flat(chosen), _flat(weights), gate, up, down).reshape(x.shape)
    tokens = place.spec(("batch", "length"), x.shape[:2])
    inward = place.spec(("expert", "embed", "expert_ffn"), coarsest(gate))
    outward = place.spec(("expert", "expert_ffn", "embed"), coarsest(down))
    stored, inner = along(inward, 0), along(inward, 2)
    split = along(tokens, 0) + along(tokens, 1)
    joined, alike = tuple(a for a in inner if a in split), tuple(a for a in inner if a not in split)
    over = tuple(a for a in stored if a in place.rules["routed"])
    slots = chosen.size // place.size(split)
    fetch = set(over) <= set(split) and _fetched(place.exchange.form, slots, gate.shape[0])
    over = () if fetch else over
    shared, apart = tuple(a for a in over if a in split), tuple(a for a in over if a not in split)
    fetched = tuple(a for a in stored if a not in over)
    sizes = tuple(place.mesh.shape[a] for a in fetched)

    def wide(matrices, names, axis):
        return jax.tree.map(lambda w: whole(whole(w, names, axis), fetched[::-1], 0), matrices)

    def local(x, chosen, weights, gate, up, down):
        numbered = _turned(_flat(chosen), sizes, gate.shape[0])
        flat = _taken_in(_flat(x), joined), _taken_in(numbered, joined), _taken_in(_flat(weights), joined)
        gate, up = (wide(w, along(inward, 1), 1) for w in (gate, up))
        down = wide(down, along(outward, 2), 2)
        if not over:
            y = expert_ffn(*flat, gate, up, down)
        elif _ragged(place.exchange.form, len(flat[0]) * place.size(over)) and over == shared and len(over) == 1:
            y = exchanged_experts(*flat, gate, up, down, axis_name=over[0], exchange=place.exchange)
        else:
            y = _gathered_experts(*flat, gate, up, down, over, shared, apart)
        y = summed(y, alike)
        y = jax.lax.psum_scatter(y, joined, tiled=True) if joined else y
        return y.reshape(x.shape)

    run = jax.shard_map(
        local,
        mesh=place.mesh,
        in_specs=(tokens, tokens, tokens, inward, inward, outward),
        out_specs=tokens,
        check_vma=False,
    )
    return run(x, chosen, weights, gate, up, down)


def coarsest(matrices: Float[Array, "experts inner outer"] | Quantized) -> tuple[int, ...]:
    """The shape by which matrices may be cut: of quantised ones that of their scales, so that groups stay whole."""
    return (matrices.scales if isinstance(matrices, Quantized) else matrices).shape


def _flat(x):
    return x.reshape(-1, x.shape[-1])


def _ragged(form, tokens):
    return form == "ragged" if form else tokens > FEW_TOKENS and device_form() == "tpu"


def _fetched(form, slots, experts):
    return form == "fetch" if form else slots >= MANY_SLOTS * experts and device_form() == "tpu"


def _turned(chosen, sizes, own):
    """Choices, renumbered for matrices that were gathered over axes of these sizes, the outermost first.

    An expert's number has a digit for each axis, then one below ``own``; gathered in this order, so that the most goes
    over the last axis, the outermost digit comes to lie innermost.
    """
    if len(sizes) < 2:
        return chosen
    blocks, digits = chosen // own, []
    for size in reversed(sizes):
        digits.append(blocks % size)
        blocks = blocks // size
    place = blocks  # what is left belongs to axes that are not gathered
    for size, digit in zip(reversed(sizes), digits, strict=True):
        place = place * size + digit
    return place * own + chosen % own


def _taken_in(rows, names):
    """Rows of all devices along these axes."""
    return jax.lax.all_gather(rows, names, tiled=True) if names else rows


def _gathered_experts(tokens, chosen, weights, gate, up, down, over, shared, apart):
    """Own experts over all tokens of the group; ``shared`` axes split tokens too, ``apart`` ones hold copies."""
    tokens, chosen, weights = (_taken_in(y, shared) for y in (tokens, chosen, weights))
    own = chosen - jax.lax.axis_index(over) * gate.shape[0]
    own = jnp.where((own >= 0) & (own < gate.shape[0]), own, gate.shape[0])
    y = expert_ffn(tokens, own, weights, gate, up, down)
    y = jax.lax.psum(y, apart) if apart else y
    return jax.lax.psum_scatter(y, shared, tiled=True) if shared else y
