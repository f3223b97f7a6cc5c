"""Expert parallelism without drops in bounded memory: tokens travel to their experts in rounds.

The (token, choice) slots of a device are sorted by expert, so those for one receiver are a list. In round r a sender
sends each receiver entries r·Q to (r+1)·Q of its list, where the quota Q is somewhat more than an even routing would
fill; the receiver runs its experts on what has come, and the same exchange takes the results home. There are

    rounds = max over sender s, receiver d of ⌈load[s, d] / Q⌉

rounds: one as a rule, more when routing is lopsided, and always as many on every device, for all know all loads. The
backward pass is the same loop, with the derivative of a round in the place of the round.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels import expert_ffn
from pallas_kernels.backends import device_form
from posttrain_jax.parallel.placement import Exchange


def exchanged_experts(
    tokens: Float[Array, "tokens hidden"],
    chosen: Int[Array, "tokens top_k"],
    weights: Float[Array, "tokens top_k"],
    gate: Float[Array, "own hidden ffn"],
    up: Float[Array, "own hidden ffn"],
    down: Float[Array, "own ffn hidden"],
    *,
    axis_name: str,
    exchange: Exchange,
) -> Float[Array, "tokens hidden"]:
    """`expert_ffn` inside ``shard_map``: ``chosen`` of all experts, of which each device along the axis holds the next.

    Memory is that of ``quota`` times the device's own slots, or of ``exchange.most_rows`` if that is less.
    """
    devices = jax.lax.axis_size(axis_name)
    rows = _most_rows(chosen.size, exchange)
    arrays = tokens, chosen, weights, gate, up, down
    return cast(Array, _exchanged(*arrays, axis_name, int(np.ceil(rows / devices))))


def even_rounds(slots: int, exchange: Exchange) -> int:
    """How many rounds there are if every device has so many slots, and as many for each receiver."""
    return int(np.ceil(slots / _most_rows(slots, exchange)))


def _most_rows(slots, exchange):
    return min(exchange.quota * slots, exchange.most_rows)


class _Plan(NamedTuple):
    """Who sends how much to whom.

    Attributes:
      order: the slots, sorted by expert.
      place: where in ``order`` each slot is.
      counts: slots for each expert of each receiver, of each sender: ``[sender, receiver, own experts]``.
      rounds: how many there are.
    """

    order: Int[Array, " slots"]
    place: Int[Array, "tokens top_k"]
    counts: Int[Array, "devices devices own"]
    rounds: Int[Array, ""]


def _plan(chosen, own, axis_name, quota):
    devices, flat = jax.lax.axis_size(axis_name), chosen.reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(flat), dtype=jnp.int32), unique_indices=True)
    ends = jnp.searchsorted(flat[order], jnp.arange(devices * own), side="right").astype(jnp.int32)
    counts = jax.lax.all_gather(jnp.diff(ends, prepend=0).reshape(devices, own), axis_name)
    rounds = -(-counts.sum(axis=2).max() // quota)
    return _Plan(order, place.reshape(chosen.shape), counts, rounds)


class _Round(NamedTuple):
    """What one device sends and takes in, in one round, in buffers of ``devices * quota`` rows.

    Attributes:
      slot: the slot that each row sent holds, or some slot where it holds none.
      sent, received: rows that go to, and come from, each device.
      expert: the own expert of each row received; for a row that holds none the number of own experts.
      row: the row sent of each slot.
      here: whether the slot is sent in this round.
    """

    slot: Int[Array, " rows"]
    sent: Int[Array, " devices"]
    received: Int[Array, " devices"]
    expert: Int[Array, " rows"]
    row: Int[Array, "tokens top_k"]
    here: Array


def _round(plan, number, axis_name, quota):
    me, devices = jax.lax.axis_index(axis_name), len(plan.counts)
    load = plan.counts.sum(axis=2)
    end = jnp.cumsum(load[me])
    entry = number * quota + jnp.arange(quota)
    slot = plan.order[jnp.minimum((end - load[me])[:, None] + entry, len(plan.order) - 1)].reshape(-1)
    sent, received = (jnp.clip(x - number * quota, 0, quota) for x in (load[me], load[:, me]))
    bounds = jnp.cumsum(plan.counts[:, me], axis=1)
    expert = (entry[None, :, None] >= bounds[:, None, :]).sum(axis=2).reshape(-1)  # past the last bound: none

    receiver = jnp.minimum((plan.place[..., None] >= end).sum(axis=-1), devices - 1)
    listed = plan.place - (end - load[me])[receiver]
    row = receiver * quota + listed % quota
    return _Round(slot, sent, received, expert, row, listed // quota == number)


def _exchange(rows, sent, received, axis_name):
    """Row ``d * quota + i`` of mine becomes row ``me * quota + i`` of device d, for i < sent[d]."""
    quota = len(rows) // len(sent)
    if rows.ndim == 1 or device_form() != "tpu":
        return jax.lax.all_to_all(rows, axis_name, 0, 0, tiled=True)
    start = jnp.arange(len(sent), dtype=jnp.int32) * quota
    landing = jnp.full(len(sent), jax.lax.axis_index(axis_name) * quota, jnp.int32)
    sizes = sent.astype(jnp.int32), landing, received.astype(jnp.int32)
    return jax.lax.ragged_all_to_all(rows, jnp.zeros_like(rows), start, *sizes, axis_name=axis_name)


def _bring_home(total, rows, now):
    """total[t] + Σ_k rows[row of (t, k)], over the slots of this round."""
    for k in range(now.row.shape[1]):
        total += jnp.where(now.here[:, k, None], rows[now.row[:, k]], 0)
    return total


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _exchanged(tokens, chosen, weights, gate, up, down, axis_name, quota):
    plan, top_k = _plan(chosen, gate.shape[0], axis_name, quota), chosen.shape[1]

    def one(number, total):
        now = _round(plan, number, axis_name, quota)
        rows = _exchange(tokens[now.slot // top_k], now.sent, now.received, axis_name)
        shares = _exchange(weights.reshape(-1)[now.slot], now.sent, now.received, axis_name)
        done = expert_ffn(rows, now.expert[:, None], shares[:, None], gate, up, down)
        return _bring_home(total, _exchange(done, now.received, now.sent, axis_name), now)

    return jax.lax.fori_loop(0, plan.rounds, one, jnp.zeros_like(tokens))


def _forward(tokens, chosen, weights, gate, up, down, axis_name, quota):
    saved = tokens, chosen, weights, gate, up, down
    return _exchanged(*saved, axis_name, quota), saved


def _backward(axis_name, quota, saved, gradient):
    tokens, chosen, weights, gate, up, down = saved
    plan, top_k = _plan(chosen, gate.shape[0], axis_name, quota), chosen.shape[1]

    def one(number, total):
        d_tokens, d_weights, d_matrices = total
        now = _round(plan, number, axis_name, quota)
        there = now.sent, now.received, axis_name
        rows, spread = (_exchange(x[now.slot // top_k], *there) for x in (tokens, gradient))
        shares = _exchange(weights.reshape(-1)[now.slot], *there)

        def run(rows, shares, *matrices):
            return expert_ffn(rows, now.expert[:, None], shares[:, None], *matrices)

        d_rows, d_shares, *more = jax.vjp(run, rows, shares, gate, up, down)[1](spread)
        back = now.received, now.sent, axis_name
        d_tokens = _bring_home(d_tokens, _exchange(d_rows, *back), now)
        d_weights = jnp.where(now.here, _exchange(d_shares, *back)[now.row], d_weights)
        return d_tokens, d_weights, [total + x for total, x in zip(d_matrices, more, strict=True)]

    nothing = [jnp.zeros(w.shape, jnp.float32) for w in (gate, up, down)]
    start = jnp.zeros_like(tokens), jnp.zeros_like(weights), nothing
    d_tokens, d_weights, d_matrices = jax.lax.fori_loop(0, plan.rounds, one, start)
    d_matrices = [d.astype(w.dtype) for d, w in zip(d_matrices, (gate, up, down), strict=True)]
    return d_tokens, None, d_weights, *d_matrices


_exchanged.defvjp(_forward, _backward)
