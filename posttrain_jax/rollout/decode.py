"""The compiled half of generation: prefill prompts, admit them to slots, decode every slot a chunk of tokens at a time.

A slot holds one sequence: a row of what each layer's attention keeps (`Decoder.empty_cache`). Its randomness comes from
its own key folded with its own token count, so what a sequence samples never depends on which slot it sits in or what
sits beside it. A prompt comes in whole (`admit`), or a chunk at a time behind what a slot holds already (`read`).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from posttrain_jax.models.decoder import Cache, Decoder
from posttrain_jax.rollout.sampling import draw

RUNNING, STOPPED, AT_LIMIT, REPEATING = 0, 1, 2, 3
MARGIN = 0  # tokens that are read again when a slot goes on from what another sequence left


@dataclasses.dataclass(frozen=True)
class Limits:
    """Everything that is fixed when the programs are compiled; lengths in tokens.

    ``slots`` is what one bank holds, of which the engine may have several. ``draft`` decodes speculatively, ``routing``
    keeps the experts that each token went to, and ``read_chunk`` tokens are read at once of a prompt that goes on from
    what is cached, or is longer than ``max_prompt``.
    """

    slots: int
    max_prompt: int
    max_response: int
    decode_chunk: int
    prefill_batch: int
    stop_tokens: tuple[int, ...]
    top_p: float = 1.0
    top_k: int = 0
    repetition_window: int = 0
    repetition_probability: float = 0.99
    draft: bool = False
    routing: bool = False
    read_chunk: int = 64

    @property
    def positions(self) -> int:
        """Cache positions of a slot."""
        return self.max_prompt + self.max_response


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Slots:
    """The state of every slot between two chunks."""

    cache: Cache
    logits: Float[Array, "slots vocab"]
    position: Int[Array, " slots"]
    rng: Key[Array, " slots"]
    temperature: Float[Array, " slots"]
    longest: Int[Array, " slots"]
    count: Int[Array, " slots"]
    streak: Int[Array, " slots"]
    status: Int[Array, " slots"]
    tokens: Int[Array, "slots max_response"]
    logprobs: Float[Array, "slots max_response"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Seating:
    """Who starts where: the row of a prompt for each slot, -1 to leave it alone, and what newcomers draw with."""

    row_of_slot: Int[Any, " slots"]
    rng: Key[Any, " slots"]
    temperature: Float[Any, " slots"]
    longest: Int[Any, " slots"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Part:
    """Parts of prompts, a row each, that slots read on from what they or others hold.

    Attributes:
      tokens: filled up to ``read_chunk``.
      lengths: how many count; with none, a row only takes over the ``source``, which has just read the same prompt.
      start: position of a row's first token.
      source: the slot that holds the tokens before: the row's own, or another to copy.
      slot: where the row goes; beyond the last for a row that is none.
      goes_on: whether the slot has read the tokens before in this same prompt.
    """

    tokens: Int[Any, "prefill_batch read_chunk"]
    lengths: Int[Any, " prefill_batch"]
    start: Int[Any, " prefill_batch"]
    source: Int[Any, " prefill_batch"]
    slot: Int[Any, " prefill_batch"]
    goes_on: Bool[Any, " prefill_batch"]

    @property
    def positions(self) -> Int[Array, "prefill_batch read_chunk"]:
        return self.start[:, None] + jnp.arange(self.tokens.shape[1])

    @property
    def valid(self) -> Bool[Array, "prefill_batch read_chunk"]:
        return jnp.arange(self.tokens.shape[1]) < self.lengths[:, None]


def empty(model: Decoder, limits: Limits) -> Slots:
    """No sequence anywhere."""
    slots = limits.slots
    integers = lambda: jnp.zeros(slots, jnp.int32)  # noqa: E731
    return Slots(
        cache=model.empty_cache(slots, limits.positions, limits.routing),
        logits=jnp.zeros((slots, model.arch.vocab), jnp.float32),
        position=integers(),
        rng=jax.random.split(jax.random.key(0), slots),
        temperature=jnp.ones(slots, jnp.float32),
        longest=integers(),
        count=integers(),
        streak=integers(),
        status=jnp.full(slots, STOPPED, jnp.int32),
        tokens=jnp.zeros((slots, limits.max_response), jnp.int32),
        logprobs=jnp.zeros((slots, limits.max_response), jnp.float32),
    )


def admit(
    model: Decoder,
    slots: Slots,
    prompts: Int[Array, "prefill_batch max_prompt"],
    lengths: Int[Array, " prefill_batch"],
    seating: Seating,
    limits: Limits,
) -> Slots:
    """Prefills prompts, and starts a sequence in every slot that is seated at one.

    Several slots may share a prompt: it is prefilled once and its cache copied.
    """
    positions = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
    nothing = model.empty_cache(*prompts.shape, routing=limits.routing)
    hidden, cached = model.extend(prompts, positions, nothing, valid=positions < lengths[:, None])
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    row_of_slot = seating.row_of_slot
    return dataclasses.replace(
        begin(slots, seating),
        cache=jax.tree.map(partial(seat, row_of_slot), slots.cache, cached),
        logits=seat(row_of_slot, slots.logits, model.logits(last)),
        position=seat(row_of_slot, slots.position, lengths),
    )


def seat(row_of_slot: Int[Array, " slots"], old: Array, fresh: Array) -> Array:
    """``old[slot]``, or ``fresh[row_of_slot]`` for a newcomer; what is fresh may be shorter along any axis."""
    new, row = row_of_slot >= 0, jnp.maximum(row_of_slot, 0)
    start = old[tuple(slice(size) for size in (None, *fresh.shape[1:]))]
    chosen = jnp.where(new.reshape(-1, *(1,) * (fresh.ndim - 1)), fresh[row], start)
    return jax.lax.dynamic_update_slice(old, chosen, (0,) * old.ndim)


def read(model: Decoder, slots: Slots, part: Part, seating: Seating, limits: Limits) -> Slots:
    """Reads parts of prompts, and starts a sequence in every slot that is seated: those that have read all of theirs.

    Slots that read and do not run are left alone by `decode`, so it may come between two parts.
    """
    before = cached_before(model, slots, part, limits)
    hidden, cached = model.extend(part.tokens, part.positions, before, part.valid)
    last = jnp.take_along_axis(hidden, jnp.maximum(part.lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    logits = jnp.where(part.lengths[:, None] > 0, model.logits(last), slots.logits[part.source])
    return dataclasses.replace(
        begin(slots, seating),
        cache=jax.tree.map(partial(put, part.slot), slots.cache, cached),
        logits=put(part.slot, slots.logits, logits),
        position=put(part.slot, slots.position, part.start + part.lengths),
    )


def cached_before(model: Decoder, slots: Any, part: Part, limits: Limits) -> Cache:
    """What the sources of a part's rows hold; nothing for those that begin."""

    def choose(memory, nothing):
        begins = (part.start == 0).reshape(-1, *(1,) * (memory.ndim - 1))
        return jnp.where(begins, nothing, memory[part.source])

    return jax.tree.map(choose, slots.cache, model.empty_cache(len(part.start), 1, limits.routing))


def put(slot: Int[Array, " rows"], old: Array, rows: Array) -> Array:
    """Rows into their slots; a slot beyond the last is none."""
    return old.at[slot].set(rows, mode="drop")


def begin(slots: Any, seating: Seating) -> Any:
    """Slots whose newcomers have drawn nothing yet."""
    new = seating.row_of_slot >= 0
    return dataclasses.replace(
        slots,
        rng=jnp.where(new, seating.rng, slots.rng),
        temperature=jnp.where(new, seating.temperature, slots.temperature),
        longest=jnp.where(new, seating.longest, slots.longest),
        count=jnp.where(new, 0, slots.count),
        streak=jnp.where(new, 0, slots.streak),
        status=jnp.where(new, RUNNING, slots.status),
    )


def stop(slots: Any, slot: Int[Array, ""]) -> Any:
    """Ends the sequence in a slot where it is."""
    return dataclasses.replace(slots, status=slots.status.at[slot].set(STOPPED))


def experts_chosen(slots: Any, slot: Int[Array, ""]) -> Int[Array, "positions layers experts_per_token"]:
    """The experts that the tokens of a slot were sent to, as far as its cache reaches; -1 in layers without."""
    chosen = [memory["chosen"][slot] for memory in slots.cache]
    return jnp.stack(chosen, axis=1).astype(jnp.int32)


def decode(model: Decoder, slots: Slots, limits: Limits) -> Slots:
    """Decodes up to ``decode_chunk`` tokens in every running slot; stops early when none runs."""
    chances = _chances(slots, limits.decode_chunk)

    def go_on(carry):
        step, slots = carry
        return (step < limits.decode_chunk) & (slots.status == RUNNING).any()

    def one(carry):
        step, slots = carry
        return step + 1, _token(model, slots, chances[step], limits)

    return jax.lax.while_loop(go_on, one, (0, slots))[1]


def _chances(slots: Slots, steps: int) -> Float[Array, "steps slots"]:
    """The random number of every slot at each of the next steps: token n draws from ``fold_in(rng, n)``."""
    one = lambda rng, count: jax.random.uniform(jax.random.fold_in(rng, count))  # noqa: E731
    counts = slots.count + jnp.arange(steps)[:, None]
    return jax.vmap(jax.vmap(one), (None, 0))(slots.rng, counts)


def _token(model: Decoder, slots: Slots, chance: Float[Array, " slots"], limits: Limits) -> Slots:
    running = slots.status == RUNNING
    token, logprob = draw(slots.logits, chance, temperature=slots.temperature, top_p=limits.top_p, top_k=limits.top_k)
    # Where none runs, what attention keeps at the position after the last token is of no meaning, and a state stays.
    position = jnp.minimum(slots.position, limits.positions - 1)
    hidden, cache = model.extend(token[:, None], position[:, None], slots.cache, valid=running[:, None])
    return dataclasses.replace(
        record(slots, token, logprob, running, limits),
        cache=cache,
        logits=model.logits(hidden[:, 0]),
        position=slots.position + running,
    )


def record(
    slots: Any,
    token: Int[Array, " slots"],
    logprob: Float[Array, " slots"],
    running: Bool[Array, " slots"],
    limits: Limits,
) -> Any:
    """Writes a token down where a sequence is ``running``, and whether it ends with it."""
    here = jnp.minimum(slots.count, limits.max_response - 1)
    index = jnp.arange(limits.slots)
    tokens = slots.tokens.at[index, here].set(jnp.where(running, token, slots.tokens[index, here]))
    logprobs = slots.logprobs.at[index, here].set(jnp.where(running, logprob, slots.logprobs[index, here]))
    count = slots.count + running
    sure = jnp.exp(logprob) > limits.repetition_probability
    streak = jnp.where(running, jnp.where(sure, slots.streak + 1, 0), slots.streak)
    status = jnp.where(running, _status(token, count, streak, slots.longest, limits), slots.status)
    return dataclasses.replace(slots, count=count, streak=streak, status=status, tokens=tokens, logprobs=logprobs)


def _status(token, count, streak, longest, limits):
    status = jnp.where(count >= longest, AT_LIMIT, RUNNING)
    if limits.repetition_window:
        status = jnp.where(streak >= limits.repetition_window, REPEATING, status)
    return jnp.where(jnp.isin(token, jnp.array(limits.stop_tokens)), STOPPED, status)
