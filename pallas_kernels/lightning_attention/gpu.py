"""The recurrence on an NVIDIA Hopper SM, with Mosaic GPU: the chunks of a row stream through shared memory.

A CTA has one head of one row, and 64 columns of its values: heads share no sum, and columns of v share none but the
scores. Its four warpgroups hand each other chunks of 64 tokens through barriers:

    loader   brings q, k, v and the counts of a chunk by TMA, as many chunks ahead as shared memory holds
    keeper   S' = exp(λ across) S + kᵀ (exp(λ far) v); S stays in its registers in float32
    writers  two, in turns:  o = (w ∘ q kᵀ) v + exp(λ near) q S,  with S as the keeper had it before the chunk

The maths is that of ``xla.py``. TMA reads zeros past the end of a row and drops what is written there; the keeper
clears keys and values at padding before anything is multiplied with them.
"""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels import tiles
from pallas_kernels.lightning_attention.segments import FAR, Layout

CHUNK = 64  # tokens, and columns of v: what one warpgroup's wgmma takes
LOADER, KEEPER, WRITERS = 0, 1, 2  # warpgroups; every other chunk is the second writer's
REGISTERS = {LOADER: 24, KEEPER: 168, WRITERS: 160}  # a thread; 128 times their sum fills the SM's 64 Ki
AGE, QUERY, KEY, NEAR, REST, ACROSS, HOLES = range(7)  # counts of a token, in this order
ROWS = 8


def why_not(q: Float[Array, "batch length heads head_dim"], chunk: int | None) -> str | None:
    """Why these shapes cannot run here, or None."""
    if q.dtype != jnp.bfloat16:
        return f"{q.dtype} arrays; its matrix products take bfloat16"
    if q.shape[-1] not in (64, 128):
        return f"head_dim={q.shape[-1]} is neither 64 nor 128"
    if chunk and chunk != CHUNK:
        return f"chunk={chunk} is not {CHUNK}"
    return None


def default_chunk(length: int) -> int:
    """What the tile table says."""
    return tiles.lookup("lightning_attention")["chunk"]


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
    missing = max(chunk - length, -length % 8)  # a TMA box is no longer than its array, and 8 tokens are a tile
    if missing:
        q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (q, k, v))
    slots = tiles.lookup("lightning_attention")["slots"]
    counts = _counts(where, chunk, reverse)
    matrix = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))

    def stored(*shape):
        return plgpu.SMEM(shape, jnp.bfloat16, transforms=matrix)

    def body(*arrays):
        pl.run_scoped(
            lambda *shared: _warpgroup(*arrays, *shared, chunks=counts.shape[1], slots=slots, reverse=reverse),
            stored(slots, chunk, dim),
            stored(slots, chunk, dim),
            stored(slots, chunk, CHUNK),
            plgpu.SMEM((slots, ROWS, chunk), jnp.float32),
            stored(2, dim, CHUNK),
            stored(chunk, CHUNK),
            stored(2, chunk, CHUNK),
            plgpu.Barrier(num_arrivals=4, num_barriers=slots),
            plgpu.Barrier(num_arrivals=2, num_barriers=slots),
            plgpu.Barrier(num_barriers=2),
            plgpu.Barrier(num_barriers=2),
            collective_axes="warpgroup",
        )

    body.__name__ = "lightning_attention_backwards" if reverse else "lightning_attention"
    out, state = plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(state.shape, jnp.float32)],
        grid=(batch, heads, dim // CHUNK),
        grid_names=("batch", "head", "columns"),
        num_threads=4,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=tiles.interpret_gpu(),
    )(q, k, v, counts, log_decay, state)
    return out[:, :length], state


def shared_bytes(slots: int, dim: int) -> int:
    """Shared memory of a CTA, without barriers: chunks on their way, two states, weighted values, two outputs."""
    chunk = 2 * CHUNK * (2 * dim + CHUNK) + 4 * CHUNK * ROWS
    return slots * chunk + 2 * CHUNK * (2 * dim + 3 * CHUNK)


def _counts(where: Layout, chunk: int, reverse: bool) -> Float[Array, "batch chunks rows chunk"]:
    """What a chunk must know of each token; what is no token is never equal to, nor near, anything."""
    near, rest = (where.until, where.since) if reverse else (where.since, where.until)
    rows: list[Array] = [where.age] * ROWS
    rows[QUERY], rows[KEY] = (jnp.where(where.real, where.sequence, none) for none in (-1, 0))
    rows[NEAR], rows[REST] = (jnp.where(where.real, span, FAR) for span in (near, rest))
    rows[ACROSS] = where.across
    padded = jnp.logical_not(where.real.reshape(len(where.real), -1, chunk).all(axis=2))
    rows[HOLES] = jnp.repeat(padded, chunk, axis=1)
    counts = jnp.stack([x.astype(jnp.float32) for x in rows], axis=1)
    return counts.reshape(*counts.shape[:2], -1, chunk).swapaxes(1, 2)


def _warpgroup(
    q, k, v, counts, log_decay, initial, out, final,  # in HBM
    qs, ks, vs, rows, states, weighted, mixed,  # in shared memory
    loaded, free, ready, used,  # barriers: of a slot, and of a state
    *, chunks, slots, reverse,
):  # fmt: skip
    me = jax.lax.axis_index("warpgroup")
    row, head, half = (jax.lax.axis_index(name) for name in ("batch", "head", "columns"))
    columns = pl.ds(half * CHUNK, CHUNK)
    dim = q.shape[-1]
    tokens = lambda step: pl.ds(_at(step, chunks, reverse) * CHUNK, CHUNK)  # noqa: E731

    @pl.when(me == LOADER)
    def _():
        plgpu.set_max_registers(REGISTERS[LOADER], action="decrease")

        def load(step, _):
            slot = jax.lax.rem(step, slots)

            @pl.when(step >= slots)
            def _():
                plgpu.barrier_wait(free.at[slot])

            here, done = tokens(step), loaded.at[slot]
            plgpu.copy_gmem_to_smem(k.at[row, here, head], ks.at[slot], done)
            plgpu.copy_gmem_to_smem(v.at[row, here, head, columns], vs.at[slot], done)
            plgpu.copy_gmem_to_smem(counts.at[row, _at(step, chunks, reverse)], rows.at[slot], done)
            plgpu.copy_gmem_to_smem(q.at[row, here, head], qs.at[slot], done)
            return _

        jax.lax.fori_loop(0, chunks, load, None)

    @pl.when(me == KEEPER)
    def _():
        plgpu.set_max_registers(REGISTERS[KEEPER], action="increase")
        rate = log_decay[head]

        def keep(step, state):
            slot, turn = jax.lax.rem(step, slots), jax.lax.rem(step, 2)
            plgpu.barrier_wait(loaded.at[slot])

            @pl.when(step >= 2)
            def _():
                plgpu.barrier_wait(used.at[turn])

            @pl.when(rows[slot, HOLES, 0] > 0)
            def _():
                for stored in (ks, vs):
                    kept = _column(rows, slot, KEY, stored.shape[-1]) > 0
                    stored[slot] = jnp.where(kept, _matrix(stored.at[slot]), jnp.bfloat16(0))

            across = rows[slot, ACROSS, 0]
            states[turn] = state.astype(jnp.bfloat16)
            weights = _decay(rate, _column(rows, slot, REST, CHUNK))
            weighted[...] = (_matrix(vs.at[slot]).astype(jnp.float32) * weights).astype(jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.barrier_arrive(ready.at[turn])

            def join(sums):
                plgpu.wgmma(sums, ks.at[slot].transpose((1, 0)), weighted)
                return sums[...]

            joined = pl.run_scoped(join, plgpu.WGMMAAccumulatorRef((dim, CHUNK), jnp.float32))
            state = _decay(rate, across) * state + joined
            plgpu.barrier_arrive(free.at[slot])
            return state

        start = _from_hbm(initial.at[row, head, :, columns])
        final[row, head, :, columns] = jax.lax.fori_loop(0, chunks, keep, start)

    @pl.when(me >= WRITERS)
    def _():
        plgpu.set_max_registers(REGISTERS[WRITERS], action="increase")
        rate, turn = log_decay[head], me - WRITERS

        def write(index, _):
            step = 2 * index + turn
            slot = jax.lax.rem(step, slots)
            plgpu.barrier_wait(loaded.at[slot])
            plgpu.barrier_wait(ready.at[turn])

            def mix(scores, carried, summed):
                plgpu.wgmma(scores, qs.at[slot], ks.at[slot].transpose((1, 0)))
                plgpu.wgmma(carried, qs.at[slot], states.at[turn])
                age = _column(rows, slot, AGE, CHUNK), _row(rows, slot, AGE)
                span = age[1] - age[0] if reverse else age[0] - age[1]
                together = (_column(rows, slot, QUERY, CHUNK) == _row(rows, slot, KEY)) & (span >= 0)
                decay = jnp.exp(rate * jnp.maximum(span, 0.0))
                near = _column(rows, slot, NEAR, CHUNK)
                weights = jnp.where(together, decay * plgpu.wgmma_accumulator_load(scores, wait_n=1), 0.0)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # of the chunk before, out of the same buffer
                mixed[turn] = weights.astype(jnp.bfloat16)
                plgpu.commit_smem()
                plgpu.wgmma(summed, mixed.at[turn], vs.at[slot])
                # a row that is no token is chosen out, whatever its query holds
                return summed[...] + jnp.where(near >= 0, _decay(rate, near) * carried[...], 0.0)

            sums = plgpu.WGMMAAccumulatorRef((CHUNK, CHUNK), jnp.float32)
            outputs = pl.run_scoped(mix, sums, sums, sums)
            plgpu.barrier_arrive(free.at[slot])
            plgpu.barrier_arrive(used.at[turn])
            mixed[turn] = outputs.astype(jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(mixed.at[turn], out.at[row, tokens(step), head, columns])
            return _

        jax.lax.fori_loop(0, (chunks - turn + 1) // 2, write, None)
        plgpu.wait_smem_to_gmem(0)


def _at(step, chunks, reverse):
    return chunks - 1 - step if reverse else step


def _column(rows, slot, name, width):
    """A count of each token, along the rows of a matrix."""
    counts = plgpu.layout_cast(rows[slot, name], plgpu.Layout.WGMMA.reduce(1))
    return jax.lax.broadcast_in_dim(counts, (CHUNK, width), [0])


def _row(rows, slot, name):
    """A count of each token, along the columns of a matrix."""
    counts = plgpu.layout_cast(rows[slot, name], plgpu.Layout.WGMMA.reduce(0))
    return jax.lax.broadcast_in_dim(counts, (CHUNK, CHUNK), [1])


def _matrix(ref):
    return plgpu.layout_cast(ref[...], plgpu.Layout.WGMMA)


def _from_hbm(ref):
    index = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()  # JAX 0.10 asks for one
    return plgpu.load(ref, *index, layout=plgpu.Layout.WGMMA, optimized=False)


def _decay(rate, span):
    return jnp.where(span >= 0, jnp.exp(rate * jnp.maximum(span, 0.0)), 0.0)
