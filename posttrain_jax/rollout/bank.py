"""The host half of generation: continuous batching of requests over one bank of slots, with prefixes used again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int32, Key

from posttrain_jax.models.architecture import LIGHTNING
from posttrain_jax.parallel import exchange
from posttrain_jax.rollout import decode, speculative
from posttrain_jax.rollout.request import Completion, Request
from posttrain_jax.rollout.seats import NONE, Account, Seat, common_prefix

if TYPE_CHECKING:
    from posttrain_jax.rollout.engine import Engine

FINISH = {decode.STOPPED: "stop", decode.AT_LIMIT: "length", decode.REPEATING: "repetition"}


class Bank:
    """Requests in, completions out, many at a time: `submit` any time, and `poll` as long as it is `busy`.

    What a request samples is a function of weights, prompt and seed (below the bank's ``key``), to the bit. With
    ``reuse`` a prompt that begins with what a slot holds has only its rest read, and then the last bits also depend on
    how the beginning came into the cache. Softmax caches are cut to what is common; a state of lightning attention
    cannot be, so there all that a slot holds must be a prefix. What other weights computed is never used again.

    Weights may change between two polls: sequences under way go on with the caches they have.
    """

    def __init__(
        self, engine: Engine, weights: nnx.State, key: Key[Array, ""], *, version: int | None = None, reuse: bool = True
    ):
        self.engine, self.weights, self.key, self.version, self.reuse = engine, weights, key, version, reuse
        self.seats = [Seat() for _ in range(engine.limits.slots)]
        self.waiting: list[int] = []
        self.account = Account()
        self._asked: dict[int, tuple[Request, np.ndarray]] = {}
        self._rewinds = LIGHTNING not in engine.arch.pattern
        self._margin = (speculative if engine.limits.draft else decode).MARGIN
        self._slots: Any = None
        self._time = 0

    @property
    def load(self) -> int:
        """How many requests wait or sit."""
        return len(self.waiting) + sum(not seat.free for seat in self.seats)

    @property
    def busy(self) -> bool:
        return self.load > 0

    def submit(self, ticket: int, request: Request) -> None:
        """Queues a request; ``ticket`` is the number under which `poll` gives its completion.

        Raises:
          ValueError: what `Engine.check` finds.
        """
        self.engine.check(request)
        self._asked[ticket] = request, np.asarray(request.prompt, np.int32)
        self.waiting.append(ticket)

    def cancel(self, ticket: int) -> None:
        """Forgets a request."""
        if ticket in self.waiting:
            self.waiting.remove(ticket)
            del self._asked[ticket]
        for slot, seat in enumerate(self.seats):
            if seat.ticket == ticket:
                with self.engine._dispatch:
                    self._slots = self.engine._stop(self._slots, np.int32(slot))
                seat.leave(seat.held if self._rewinds else NONE, self._time)

    def update_weights(self, weights: nnx.State, version: int) -> None:
        """All tokens from here on are drawn with other weights (from `Engine.load`)."""
        self.weights, self.version = weights, version

    def clear(self) -> None:
        """Forgets every request and all that slots hold."""
        self.seats = [Seat() for _ in self.seats]
        self.waiting.clear()
        self._asked.clear()
        self._slots = None

    def poll(self) -> list[tuple[int, Completion]]:
        """Seats who waits, reads a part of long prompts, decodes a chunk of tokens.

        Returns:
          The tickets that have finished, with their completions.
        """
        self._time += 1
        with self.engine._dispatch:  # so that no two threads compile one program
            if self._slots is None:
                self._slots = self.engine._empty()
            self._go_on()
            self._admit()
            self._join()
            running = [slot for slot, seat in enumerate(self.seats) if seat.running]
            if running:
                self._slots = self.engine._decode(self.weights, self._slots)
        return self._collect(running) if running else []

    def so_far(self) -> dict[int, tuple[Int32[np.ndarray, " tokens"], Float32[np.ndarray, " tokens"]]]:
        """What each request that sits has drawn until now, and the log-probabilities."""
        sitting = [(slot, seat) for slot, seat in enumerate(self.seats) if seat.ticket is not None and seat.drawn]
        if not sitting:
            return {}
        tokens, logprobs = exchange.fetch((self._slots.tokens, self._slots.logprobs))
        counts = {slot: seat.drawn[-1][0] for slot, seat in sitting}
        return {
            seat.ticket: (tokens[slot, : counts[slot]].copy(), logprobs[slot, : counts[slot]].copy())
            for slot, seat in sitting
            if seat.ticket is not None
        }

    def prefix(self, prompt: np.ndarray) -> tuple[int, int]:
        """The slot that holds the longest prefix of a prompt that can be used again, and its length.

        None, (0, 0), where it would not save reading a part.
        """
        best = 0, 0
        for slot, seat in enumerate(self.seats):
            if not self.reuse or seat.version != self.version:
                continue
            common = common_prefix(seat.held, prompt)
            if self._rewinds:
                common = min(common, len(prompt) - 1) - self._margin
            elif not seat.free or not common == len(seat.held) < len(prompt):
                continue
            best = max(best, (slot, common), key=lambda found: found[1])
        return best if self._parts(len(prompt) - best[1]) < self._parts(len(prompt)) else (0, 0)

    # Who sits where.

    def _vacant(self) -> list[int]:
        """Free slots, what was left longest ago first."""
        free = [slot for slot, seat in enumerate(self.seats) if seat.free]
        return sorted(free, key=lambda slot: self.seats[slot].left) if self.reuse else free

    def _sit(self, slot: int, ticket: int, read: int) -> None:
        self.waiting.remove(ticket)
        request, prompt = self._asked.pop(ticket)
        seat = self.seats[slot]
        seat.ticket, seat.request, seat.prompt, seat.drawn = ticket, request, prompt, []
        seat.version, seat.read, seat.held = self.version, read, prompt[:read]
        self.account.read += len(prompt) - read
        self.account.reused += read

    def _admit(self) -> None:
        """Prefills fresh prompts in one go."""
        whole = [t for t in self.waiting if len(self._asked[t][1]) <= self.engine.limits.max_prompt]
        newcomers = self.engine._seat(whole, self._vacant(), lambda ticket: self._asked[ticket][1].tobytes())
        if not newcomers:
            return
        limits = self.engine.limits
        tokens = np.zeros((limits.prefill_batch, limits.max_prompt), np.int32)
        lengths = np.ones(limits.prefill_batch, np.int32)
        rows: dict[bytes, int] = {}
        row_of_slot = {}
        for slot, ticket in newcomers.items():
            prompt = self._asked[ticket][1]
            row = row_of_slot[slot] = rows.setdefault(prompt.tobytes(), len(rows))
            lengths[row] = len(prompt)
            tokens[row, : len(prompt)] = prompt
            self._sit(slot, ticket, 0)
            self.seats[slot].read, self.seats[slot].held = len(prompt), prompt
        self._slots = self.engine._admit(self.weights, self._slots, tokens, lengths, self._seating(row_of_slot))

    def _go_on(self) -> None:
        """Reads a part of prompts: of those begun, then of those who wait and need not begin at their beginning."""
        rows = [(slot, slot, True) for slot, seat in enumerate(self.seats) if seat.reading]
        rows = rows[: self.engine.limits.prefill_batch]
        for ticket in list(self.waiting):
            vacant = self._vacant()
            if not vacant or len(rows) == self.engine.limits.prefill_batch:
                break
            prompt = self._asked[ticket][1]
            source, common = self.prefix(prompt)
            if self._reads_whole(len(prompt), common) or self._soon(prompt, common):
                continue
            whole = source in vacant and common == len(self.seats[source].held)
            slot = source if whole else vacant[0]
            self._sit(slot, ticket, common)
            rows.append((slot, source, False))
        if rows:
            self._read(rows)

    def _join(self) -> None:
        """Seats those whose prompt someone has read just now, and drawn nothing since: nothing is left to compute."""
        ready = {s.prompt.tobytes(): slot for slot, s in enumerate(self.seats) if s.running and not s.drawn}
        while self.reuse:
            chosen = [(t, ready.get(self._asked[t][1].tobytes())) for t in self.waiting]
            chosen = [(t, source) for t, source in chosen if source is not None]
            rows = []
            for (ticket, source), slot in zip(chosen, self._vacant(), strict=False):
                if len(rows) < self.engine.limits.prefill_batch:
                    self._sit(slot, ticket, len(self._asked[ticket][1]))
                    rows.append((slot, source, False))
            if not rows:
                return
            self._read(rows)

    def _parts(self, tokens: int) -> int:
        return -(-tokens // self.engine.limits.read_chunk)

    def _reads_whole(self, length: int, common: int) -> bool:
        """Whether a prompt is better prefilled in one go than in parts behind what is ``common``.

        The two differ in their last bits. Without ``reuse`` its length alone decides, never how many others wait.
        """
        limits = self.engine.limits
        if not self.reuse:
            return length <= limits.max_prompt
        return length <= limits.max_prompt <= self._parts(length - common) * limits.read_chunk

    def _soon(self, prompt: np.ndarray, common: int) -> bool:
        """Whether someone is reading more of the same."""
        if not self.reuse:
            return False
        shared = [
            common_prefix(seat.prompt, prompt) for seat in self.seats if seat.reading and seat.version == self.version
        ]
        return any(length > common + self._margin if self._rewinds else length == len(prompt) for length in shared)

    # What the device is told, and tells.

    def _read(self, rows: list[tuple[int, int, bool]]) -> None:
        """One part of the prompts of some slots: (slot, source, whether it goes on with its own prompt)."""
        limits = self.engine.limits
        integers = lambda: np.zeros(limits.prefill_batch, np.int32)  # noqa: E731
        tokens = np.zeros((limits.prefill_batch, limits.read_chunk), np.int32)
        part = decode.Part(tokens, integers(), integers(), integers(), integers(), np.zeros(len(integers()), bool))
        part.slot[:] = limits.slots
        for row, (slot, source, goes_on) in enumerate(rows):
            seat = self.seats[slot]
            new = seat.prompt[seat.read : seat.read + limits.read_chunk]
            tokens[row, : len(new)], part.lengths[row], part.start[row] = new, len(new), seat.read
            part.slot[row], part.source[row], part.goes_on[row] = slot, source, goes_on
            seat.read += len(new)
            seat.held = seat.prompt[: seat.read]
        starting = {slot: 0 for slot, _, _ in rows if self.seats[slot].running}
        self._slots = self.engine._read(self.weights, self._slots, part, self._seating(starting))

    def _seating(self, row_of_slot: dict[int, int]) -> decode.Seating:
        limits = self.engine.limits
        rows, seeds = np.full(limits.slots, -1, np.int32), np.zeros(limits.slots, np.uint32)
        temperature, longest = np.ones(limits.slots, np.float32), np.zeros(limits.slots, np.int32)
        for slot, row in row_of_slot.items():
            request, length = self.seats[slot].request, len(self.seats[slot].prompt)
            assert request is not None
            rows[slot], seeds[slot], temperature[slot] = row, request.seed, request.temperature
            longest[slot] = min(request.max_tokens, limits.max_response, limits.positions - length)
        return decode.Seating(rows, self.engine._keys(self.key, seeds), temperature, longest)

    def _collect(self, running: list[int]) -> list[tuple[int, Completion]]:
        """Looks at what a chunk has brought: notes whose weights drew it, and frees the slots that are through."""
        limits = self.engine.limits
        status, count = exchange.fetch((self._slots.status, self._slots.count))
        before = [seat.drawn[-1][0] if seat.drawn else 0 for seat in self.seats]
        new = {slot: int(count[slot]) - before[slot] for slot in running}
        self.account.drawn += sum(new.values())
        self.account.places += limits.slots * max(new.values())
        for slot in running:
            self.seats[slot].drawn.append((int(count[slot]), self.version))
        finished = [slot for slot in running if status[slot] != decode.RUNNING]
        if not finished:
            return []
        tokens, logprobs = exchange.fetch((self._slots.tokens, self._slots.logprobs))
        drafts = exchange.fetch((self._slots.drafted, self._slots.kept)) if limits.draft else None
        done = []
        for slot in finished:
            seat, n = self.seats[slot], count[slot]
            assert seat.ticket is not None and seat.request is not None
            said = tokens[slot, :n].copy()
            drafted, kept = (int(each[slot]) for each in drafts) if drafts else (0, 0)
            completion = Completion(
                said,
                logprobs[slot, :n].copy(),
                FINISH[int(status[slot])],
                drafted,
                kept,
                versions=None if self.version is None else _versions(seat.drawn),
                routing=self._routing(slot, len(seat.prompt) + n) if seat.request.routing else None,
            )
            done.append((seat.ticket, completion))
            # the last position of a cache is where slots at rest write
            seat.leave(np.concatenate([seat.prompt, said])[: limits.positions - 1], self._time)
        return done

    def _routing(self, slot: int, length: int) -> Int32[np.ndarray, "length layers experts_per_token"]:
        return exchange.fetch(self.engine._chosen(self._slots, np.int32(slot)))[:length]


def _versions(drawn: list[tuple[int, int | None]]) -> Int32[np.ndarray, " response"]:
    ends = [end for end, _ in drawn]
    return np.repeat([version or 0 for _, version in drawn], np.diff(ends, prepend=0)).astype(np.int32)
