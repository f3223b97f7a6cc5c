"""Speculative decoding: the layer of multi-token prediction drafts a token, the model judges it with the one before.

A step draws a token, drafts the next one, and feeds both to the model, so it yields one token or two. With p the
model's distribution of the next token and q the draft's, the draft x is kept with probability min(1, p(x)/q(x));
otherwise the token is drawn from max(p - q, 0), renormalised. Either way it is distributed as p (arXiv 2211.17192,
theorem 1): drafts change the speed and nothing else. The face is that of `rollout.decode`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from posttrain_jax.models.architecture import LIGHTNING, Architecture
from posttrain_jax.models.decoder import Cache, Decoder
from posttrain_jax.rollout.decode import (
    RUNNING,
    STOPPED,
    Limits,
    Part,
    Seating,
    begin,
    cached_before,
    put,
    record,
    seat,
)
from posttrain_jax.rollout.sampling import distribution, invert

MARGIN = 1  # tokens that are read again when a slot goes on from what another sequence left
_SPARE = 2  # cache positions behind the last: of a draft that lies past the end, of an entry that is none


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Slots:
    """The state of every slot between two chunks.

    ``position`` is the next token's. ``trunk`` holds what left the model's layers at the two positions before it, and
    ``last`` the token at the nearer one: the draft layer's next entries. ``refused`` is the q of a draft that was not
    kept, zero otherwise.
    """

    cache: Cache
    next_cache: Any
    logits: Float[Array, "slots vocab"]
    refused: Float[Array, "slots vocab"]
    trunk: Float[Array, "slots 2 hidden"]
    last: Int[Array, " slots"]
    position: Int[Array, " slots"]
    rng: Key[Array, " slots"]
    temperature: Float[Array, " slots"]
    longest: Int[Array, " slots"]
    count: Int[Array, " slots"]
    streak: Int[Array, " slots"]
    status: Int[Array, " slots"]
    tokens: Int[Array, "slots max_response"]
    logprobs: Float[Array, "slots max_response"]
    drafted: Int[Array, " slots"]
    kept: Int[Array, " slots"]


def accepted(
    p: Float[Array, "slots vocab"],
    q: Float[Array, "slots vocab"],
    draft: Int[Array, " slots"],
    chance: Float[Array, " slots"],
) -> Bool[Array, " slots"]:
    """Whether a draft, drawn from q, is kept: with probability min(1, p/q). ``chance`` is uniform in [0, 1)."""
    p, q = (jnp.take_along_axis(mass, draft[:, None], axis=1)[:, 0] for mass in (p, q))
    return chance * q < p


def leftover(p: Float[Array, "slots vocab"], q: Float[Array, "slots vocab"]) -> Float[Array, "slots vocab"]:
    """What to draw from instead of a draft that was not kept, up to a factor; p itself where q is zero."""
    left = jnp.maximum(p - q, 0)
    return jnp.where(left.sum(axis=-1, keepdims=True) > 0, left, p)


def check(arch: Architecture) -> None:
    """Refuses models that cannot draft.

    Raises:
      ValueError: a model without multi-token prediction, or one with a state that cannot take a token back.
    """
    if not arch.mtp_layers:
        raise ValueError("drafts need a layer of multi-token prediction, and this model has none (mtp_layers=0)")
    if LIGHTNING in arch.pattern:
        raise ValueError("drafts need caches that a token can be taken back from; lightning attention keeps a state")


def empty(model: Decoder, limits: Limits) -> Slots:
    """No sequence anywhere."""
    slots, arch = limits.slots, model.arch
    integers = lambda: jnp.zeros(slots, jnp.int32)  # noqa: E731
    return Slots(
        cache=model.empty_cache(slots, limits.positions + _SPARE, limits.routing),
        next_cache=model.empty_next_cache(slots, limits.positions + _SPARE),
        logits=jnp.zeros((slots, arch.vocab), jnp.float32),
        refused=jnp.zeros((slots, arch.vocab), jnp.float32),
        trunk=jnp.zeros((slots, 2, arch.hidden), model.compute_dtype),
        last=integers(),
        position=integers(),
        rng=jax.random.split(jax.random.key(0), slots),
        temperature=jnp.ones(slots, jnp.float32),
        longest=integers(),
        count=integers(),
        streak=integers(),
        status=jnp.full(slots, STOPPED, jnp.int32),
        tokens=jnp.zeros((slots, limits.max_response), jnp.int32),
        logprobs=jnp.zeros((slots, limits.max_response), jnp.float32),
        drafted=integers(),
        kept=integers(),
    )


def admit(
    model: Decoder,
    slots: Slots,
    prompts: Int[Array, "prefill_batch max_prompt"],
    lengths: Int[Array, " prefill_batch"],
    seating: Seating,
    limits: Limits,
) -> Slots:
    """Prefills prompts in the model and in the draft layer, and starts sequences; see `decode.admit`."""
    positions = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
    valid = positions < lengths[:, None]
    trunk, cache = model.extend_trunk(
        prompts, positions, model.empty_cache(*prompts.shape, routing=limits.routing), valid
    )
    following = jnp.pad(prompts[:, 1:], ((0, 0), (0, 1)))
    # Entries from the last token on are nonsense until the tokens are there to write them anew.
    _, next_cache = model.extend_next(trunk, following, positions, model.empty_next_cache(*prompts.shape))
    ends = jnp.maximum(lengths[:, None] - jnp.array([2, 1]), 0)
    trunk = jnp.take_along_axis(trunk, ends[:, :, None], axis=1)
    seated = partial(seat, seating.row_of_slot)
    new = seating.row_of_slot >= 0
    return dataclasses.replace(
        begin(slots, seating),
        cache=jax.tree.map(seated, slots.cache, cache),
        next_cache=jax.tree.map(seated, slots.next_cache, next_cache),
        logits=seated(slots.logits, model.logits(model.normed(trunk[:, 1]))),
        refused=jnp.where(new[:, None], 0, slots.refused),
        trunk=seated(slots.trunk, trunk),
        last=seated(slots.last, jnp.take_along_axis(prompts, ends[:, 1:], axis=1)[:, 0]),
        position=seated(slots.position, lengths),
        drafted=jnp.where(new, 0, slots.drafted),
        kept=jnp.where(new, 0, slots.kept),
    )


def read(model: Decoder, slots: Slots, part: Part, seating: Seating, limits: Limits) -> Slots:
    """Reads parts of prompts in the model and in the draft layer; see `decode.read`.

    The draft layer's entry at a token waits for the token after it, so a part writes those from the token before its
    first. The trunk there is at hand where a slot ``goes_on``; elsewhere the entry must be there, and it is where the
    part starts `MARGIN` before what the source holds ends or differs. The last two tokens must be among those read.
    """
    before = cached_before(model, slots, part, limits)
    next_before = jax.tree.map(lambda memory: memory[part.source], slots.next_cache)
    trunk, cache = model.extend_trunk(part.tokens, part.positions, before, part.valid)
    trunk = jnp.concatenate([slots.trunk[part.source], trunk], axis=1)
    known = part.valid & (part.goes_on[:, None] | (jnp.arange(part.tokens.shape[1]) > 0))
    entries = jnp.where(known, part.positions - 1, limits.positions + 1)
    _, next_cache = model.extend_next(trunk[:, 1:-1], part.tokens, entries, next_before)
    ends = part.lengths[:, None] + jnp.arange(2)
    trunk = jnp.take_along_axis(trunk, ends[:, :, None], axis=1)
    last = jnp.take_along_axis(part.tokens, jnp.maximum(part.lengths - 1, 0)[:, None], axis=1)[:, 0]
    new = seating.row_of_slot >= 0
    into = partial(put, part.slot)
    return dataclasses.replace(
        begin(slots, seating),
        cache=jax.tree.map(into, slots.cache, cache),
        next_cache=jax.tree.map(into, slots.next_cache, next_cache),
        logits=into(slots.logits, model.logits(model.normed(trunk[:, 1]))),
        refused=jnp.where(new[:, None], 0, slots.refused),
        trunk=into(slots.trunk, trunk),
        last=into(slots.last, jnp.where(part.lengths > 0, last, slots.last[part.source])),
        position=into(slots.position, part.start + part.lengths),
        drafted=jnp.where(new, 0, slots.drafted),
        kept=jnp.where(new, 0, slots.kept),
    )


def decode(model: Decoder, slots: Slots, limits: Limits) -> Slots:
    """Takes up to ``decode_chunk`` steps, each of one token or two, in every running slot."""

    def go_on(carry):
        step, slots = carry
        return (step < limits.decode_chunk) & (slots.status == RUNNING).any()

    def one(carry):
        step, slots = carry
        return step + 1, _step(model, slots, limits)

    return jax.lax.while_loop(go_on, one, (0, slots))[1]


def _step(model: Decoder, slots: Slots, limits: Limits) -> Slots:
    likely = partial(distribution, temperature=slots.temperature, top_p=limits.top_p, top_k=limits.top_k)
    running, index = slots.status == RUNNING, jnp.arange(limits.slots)

    p, logprobs = likely(slots.logits)
    token = invert(leftover(p, slots.refused), _chance(slots, 0))
    new = record(slots, token, logprobs[index, token], running, limits)

    # the draft layer's entries at the two positions before this token; the farther one is there already, or is new
    at = jnp.minimum(slots.position, limits.positions - 1)
    before = jnp.stack([at - 2, at - 1], axis=1)
    before = jnp.where(before < 0, limits.positions + 1, before)
    following = jnp.stack([slots.last, token], axis=1)
    drafting, next_cache = model.extend_next(slots.trunk, following, before, slots.next_cache)
    q, _ = likely(model.logits(drafting[:, 1]))
    draft = invert(q, _chance(slots, 1))

    pair = jnp.stack([token, draft], axis=1)
    trunk, cache = model.extend_trunk(pair, jnp.stack([at, at + 1], axis=1), slots.cache)
    logits = model.logits(model.normed(trunk))
    p, logprobs = likely(logits[:, 0])
    judged = running & (new.status == RUNNING)
    kept = judged & accepted(p, q, draft, _chance(slots, 2))
    new = record(new, draft, logprobs[index, draft], kept, limits)

    one, two = kept[:, None], kept[:, None, None]
    one_further = jnp.stack([slots.trunk[:, 1], trunk[:, 0]], axis=1)
    return dataclasses.replace(
        new,
        cache=cache,
        next_cache=next_cache,
        logits=jnp.where(one, logits[:, 1], logits[:, 0]),
        refused=jnp.where(one, 0, q),
        trunk=jnp.where(running[:, None, None], jnp.where(two, trunk, one_further), slots.trunk),
        last=jnp.where(running, jnp.where(kept, draft, token), slots.last),
        position=slots.position + running + kept,
        drafted=slots.drafted + judged,
        kept=slots.kept + kept,
    )


def _chance(slots: Slots, purpose: int) -> Float[Array, " slots"]:
    """A random number for every slot: token n draws from ``fold_in(rng, n)``, what else it needs from keys of that."""

    def one(rng, count):
        key = jax.random.fold_in(rng, count)
        return jax.random.uniform(jax.random.fold_in(key, purpose) if purpose else key)

    return jax.vmap(one)(slots.rng, slots.count)
