"""The statistics on an NVIDIA Hopper GPU, in one pass over the vocabulary (Pallas, Mosaic GPU).

A block of threads forms the logits of 128 tokens and 256 words at a time, in registers; from them the running maximum m
of each token, Σ exp(z-m), Σ exp(z-m)(z-m) and the target's z. The SMs stand in a rectangle, tiles of tokens by
shares of the vocabulary, so that those under way at a time read the same tokens and words, out of L2. The shares'
statistics, four numbers a token each, are joined at the end.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels import tiles
from pallas_kernels.gpu_ring import LINE, WARPGROUPS, Ring, ring_types, specialized

TOKENS = 128  # of a tile, half of them for each warpgroup
HALF = TOKENS // WARPGROUPS
NOTHING = -1e30  # the largest of no logits

PerToken = Float[Array, "batch length"]


def why_not(hidden: Float[Array, "batch length hidden"], head: Float[Array, "hidden vocab"]) -> str | None:
    """Why these arrays cannot run here, or None."""
    width, vocab = head.shape
    if not hidden.dtype == head.dtype == jnp.bfloat16:
        return f"it multiplies bfloat16 alone, not {hidden.dtype} hidden states with a head in {head.dtype}"
    if width % LINE:
        return f"hidden={width} is no multiple of {LINE}"
    if vocab % 8 or vocab < LINE:
        return f"vocab={vocab} is no multiple of 8, or less than {LINE}"
    return None


def statistics(
    hidden: Float[Array, "batch length hidden"],
    head: Float[Array, "hidden vocab"],
    targets: Int[Array, "batch length"],
    inverse: PerToken,
) -> tuple[PerToken, PerToken, PerToken]:
    """log Σ exp z, z of the target (0 if it is none of these words) and the entropy."""
    shape, (width, vocab) = targets.shape, head.shape
    tokens = targets.size
    sizes = tiles.lookup("token_logprobs")
    words = min(sizes["vocab"], vocab // LINE * LINE)
    missing = -tokens % TOKENS
    rows = jnp.pad(hidden.reshape(tokens, width), ((0, missing), (0, 0)))
    per_token = [jnp.pad(x.reshape(-1), (0, missing)) for x in (targets.astype(jnp.int32), inverse)]
    side, shares = rectangle(len(rows) // TOKENS, pl.cdiv(vocab, words), sizes["sms"])
    found = plgpu.kernel(
        partial(_kernel, words=words, side=side, shares=shares),
        out_type=[jax.ShapeDtypeStruct((shares, len(rows)), jnp.float32)] * 4,
        scratch_types={
            "ring": ring_types(sizes["stages"], (TOKENS, LINE), (LINE, words)),
            "told": [plgpu.SMEM((WARPGROUPS, HALF), x.dtype) for x in per_token],
            "arrived": plgpu.Barrier(num_arrivals=len(per_token), num_barriers=WARPGROUPS),
            "found": plgpu.SMEM((4, WARPGROUPS, HALF), jnp.float32),
        },
        grid=(side, shares),
        grid_names=("side", "share"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=tiles.interpret_gpu(),
        kernel_name="token_logprobs",
    )(rows, head, *per_token)
    normaliser, chosen, entropy = (x[:tokens].reshape(shape) for x in joined(*found))
    return normaliser, chosen, entropy


def rectangle(token_tiles: int, word_tiles: int, sms: int) -> tuple[int, int]:
    """How many tiles of tokens by how many shares of the vocabulary are under way: the fewest turns, then a square."""
    cost = lambda side, shares: (-(-token_tiles // side) * -(-word_tiles // shares), abs(side - shares))  # noqa: E731
    sides = range(1, min(token_tiles, sms) + 1)
    return min(((side, min(sms // side, word_tiles)) for side in sides), key=lambda x: cost(*x))


def joined(largest, total, spread, chosen):
    """The statistics of all words from those of ``[shares, tokens]``."""
    whole = largest.max(axis=0)
    share = jnp.exp(largest - whole)
    spread = (share * (spread + total * (largest - whole))).sum(axis=0)
    total = (share * total).sum(axis=0)
    return whole + jnp.log(total), chosen.sum(axis=0), jnp.log(total) - spread / total


def _kernel(hidden, head, targets, inverse, *outs, words, side, shares, ring, told, arrived, found):
    ring = Ring(**ring)
    width, vocab = hidden.shape[1] // LINE, head.shape[1]
    tiles_of_tokens = hidden.shape[0] // TOKENS
    mine, share = jax.lax.axis_index("side"), jax.lax.axis_index("share")
    turns = jax.lax.div(jnp.int32(-(-vocab // words) - 1) - share, jnp.int32(shares)) + 1

    def first_word(turn):
        """The last tile begins earlier, to end with the vocabulary; what it shares with the one before counts once."""
        wanted = (share + turn * shares) * words
        return wanted, jnp.minimum(wanted, vocab - words)

    def each(work):
        @pl.loop(0, -(-tiles_of_tokens // side))
        def _(band):
            tile = band * side + mine

            @pl.when(tile < tiles_of_tokens)
            def _():
                work(band * turns * width, tile * TOKENS)

    def copying():
        def work(first, row):
            def sources(k, copy):
                here = pl.ds(jax.lax.rem(k, jnp.int32(width)) * LINE, LINE)
                _, word = first_word(jax.lax.div(k, jnp.int32(width)))
                copy(hidden.at[pl.ds(row, TOKENS), here], head.at[here, pl.ds(word, words)])

            ring.fill(first, turns * width, sources)

        each(work)
        ring.drain(jax.lax.div(tiles_of_tokens - 1 - mine, jnp.int32(side)) * (turns * width) + turns * width)

    def multiplying(warpgroup):
        half = pl.ds(warpgroup * HALF, HALF)

        def work(first, row):
            own = pl.ds(row + warpgroup * HALF, HALF)
            for source, target in zip((targets, inverse), told, strict=True):
                plgpu.copy_gmem_to_smem(source.at[own], target.at[warpgroup], arrived.at[warpgroup])
            plgpu.barrier_wait(arrived.at[warpgroup])
            target, scale = (x[warpgroup] for x in told)

            def step(turn, state):
                def accumulate(logits):
                    start = lambda a, b: plgpu.wgmma(logits, a.at[half], b)  # noqa: E731
                    ring.multiply(first + turn * width, width, start)
                    return logits[...]

                logits = pl.run_scoped(accumulate, plgpu.WGMMAAccumulatorRef((HALF, words), jnp.float32))
                return fold(state, logits, *first_word(turn), target, scale)

            zero = jnp.zeros((HALF,), jnp.float32)
            state = jax.lax.fori_loop(0, turns, step, (jnp.full((HALF,), NOTHING, jnp.float32), zero, zero, zero))
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            for i, value in enumerate(state):
                found[i, warpgroup] = value
            plgpu.commit_smem()
            for i, out in enumerate(outs):
                plgpu.copy_smem_to_gmem(found.at[i, warpgroup], out.at[share, own])

        each(work)
        plgpu.wait_smem_to_gmem(0)

    specialized(copying, multiplying)


def fold(state, logits, wanted, first, target, scale):
    """The statistics with some more words in them: ``logits`` of ``first, first + 1, …``, new from ``wanted`` on.

    By 64 words at a time, of which no more than the logits themselves have to stay in registers.
    """
    largest, total, spread, chosen = state
    pieces, shape = range(0, logits.shape[1], LINE), (logits.shape[0], LINE)
    each = lambda x: jax.lax.broadcast_in_dim(x, shape, (0,))  # noqa: E731
    index = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    target, wanted = target - first, wanted - first
    known = [jnp.where(index >= wanted - i, logits[:, i : i + LINE] * each(scale), NOTHING) for i in pieces]
    met: Any = sum(
        jnp.where((index == each(target - i)) & (index >= wanted - i), z, 0.0)
        for i, z in zip(pieces, known, strict=True)
    )
    now = jnp.maximum(largest, functools.reduce(jnp.maximum, known).max(axis=1))
    weights, spreads = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
    for z in known:
        below = z - each(now)
        weight = jnp.exp(below)
        weights, spreads = weights + weight, spreads + weight * below
    faded = jnp.exp(largest - now)
    spread = faded * (spread + total * (largest - now)) + spreads.sum(axis=1)
    return now, faded * total + weights.sum(axis=1), spread, chosen + met.sum(axis=1)
