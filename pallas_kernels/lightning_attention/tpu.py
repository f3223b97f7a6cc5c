"""The recurrence on a TPU core: the states of some heads stay in VMEM while the chunks of a row stream through.

Arrays keep their layout ``[batch, length, heads · head_dim]``; a step reads one chunk of a few heads. The maths is that
of ``xla.py``. A sequence need not fill its last chunk: what is read past the end is masked, never multiplied.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels import tiles
from pallas_kernels.backends import exact
from pallas_kernels.lightning_attention.segments import Layout

ROWS = 8  # of the layout in VMEM: one tile of 32-bit numbers
REAL, AGE, SEQUENCE, SINCE, UNTIL, ACROSS = range(6)


def why_not(q: Float[Array, "batch length heads head_dim"], chunk: int | None) -> str | None:
    """Why these shapes cannot run here, or None."""
    if q.shape[-1] % 128:
        return f"head_dim={q.shape[-1]} is no multiple of the 128 lanes"
    if chunk and chunk % 128:
        return f"chunk={chunk} is no multiple of 128"
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
    chunks = where.age.shape[1] // chunk
    together = tiles.largest_divisor(heads, tiles.lookup("lightning_attention")["heads"])
    rows = jnp.stack([x.astype(jnp.float32) for x in where], axis=1)
    rows = jnp.pad(rows, ((0, 0), (0, ROWS - rows.shape[1]), (0, 0)))
    at = (lambda c: chunks - 1 - c) if reverse else (lambda c: c)
    tokens = pl.BlockSpec((1, chunk, together * dim), lambda b, h, c, _: (b, at(c), h))
    states = pl.BlockSpec((1, together, dim, dim), lambda b, h, c, _: (b, h, 0, 0))
    products = 4 * batch * chunks * heads * (chunk * chunk + chunk * dim) * dim
    moved = 4 * q.size * q.dtype.itemsize + 2 * state.size * 4 + rows.size * 4 * (heads // together)
    out, state = pl.pallas_call(
        partial(_kernel, together=together, dim=dim, reverse=reverse),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, heads // together, chunks),
            in_specs=[
                pl.BlockSpec((1, ROWS, chunk), lambda b, h, c, _: (b, 0, at(c))),
                tokens,
                tokens,
                tokens,
                states,
            ],
            out_specs=[tokens, states],
            scratch_shapes=[pltpu.VMEM((together, dim, dim), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, length, heads * dim), q.dtype),
            jax.ShapeDtypeStruct(state.shape, jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=products, bytes_accessed=moved, transcendentals=batch * chunks * heads * chunk * chunk
        ),
        interpret=tiles.interpret(),
        name="lightning_attention_backwards" if reverse else "lightning_attention",
    )(log_decay, rows, *(x.reshape(batch, length, heads * dim) for x in (q, k, v)), state)
    return out.reshape(q.shape), state


def _kernel(log_decay, rows, q, k, v, initial, out, final, state, *, together, dim, reverse):
    step, chunk = pl.program_id(2), q.shape[1]

    @pl.when(step == 0)
    def _():
        state[...] = initial[0]

    here = rows[0]  # [ROWS, chunk]
    column = here.T
    real = column[:, REAL : REAL + 1] > 0
    age, sequence = column[:, AGE : AGE + 1], column[:, SEQUENCE : SEQUENCE + 1]
    index = [jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), axis) for axis in (0, 1)]
    behind = index[0] <= index[1] if reverse else index[0] >= index[1]
    same = (sequence == here[SEQUENCE : SEQUENCE + 1]) & behind
    span = jnp.where(same, jnp.abs(age - here[AGE : AGE + 1]), 0.0)
    near, far = (UNTIL, SINCE) if reverse else (SINCE, UNTIL)
    near, far = column[:, near : near + 1], column[:, far : far + 1]
    across = here[ACROSS : ACROSS + 1, :1]
    dot = partial(_dot, precision=exact(q.dtype))

    for head in range(together):
        rate = log_decay[pl.program_id(1) * together + head]
        part = (0, slice(None), slice(head * dim, (head + 1) * dim))
        q_, k_, v_ = q[part], k[part], v[part]
        k_, v_ = jnp.where(real, k_, jnp.zeros_like(k_)), jnp.where(real, v_, jnp.zeros_like(v_))
        weights = jnp.where(same, jnp.exp(rate * span), 0.0) * dot(q_, k_, (1, 1))
        mixed = dot(weights.astype(v_.dtype), v_, (1, 0))
        mixed += _decay(rate, near) * dot(q_, state[head].astype(q_.dtype), (1, 0))
        out[part] = jnp.where(real, mixed, 0.0).astype(out.dtype)
        joined = dot((k_.astype(jnp.float32) * _decay(rate, far)).astype(k_.dtype), v_, (0, 0))
        state[head] = _decay(rate, across) * state[head] + joined

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        final[0] = state[...]


def _decay(rate, span):
    return jnp.where(span >= 0, jnp.exp(rate * jnp.maximum(span, 0.0)), 0.0)


def _dot(a, b, axes, precision):
    dims = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
