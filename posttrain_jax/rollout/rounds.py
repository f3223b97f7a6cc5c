"""An engine for the coroutines of one event loop: between two looks at the device, all go on as far as they can."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools

import jax
import numpy as np
from flax import nnx

from posttrain_jax.rollout.bank import Bank
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Completion, Request
from posttrain_jax.rollout.seats import Account

QUIET = 8  # passes of the event loop in which nobody asks anything: then nobody will before something is answered


@dataclasses.dataclass
class _Open:
    request: Request
    begun: Completion | None  # under earlier weights
    future: asyncio.Future[Completion]
    bank: Bank | None = None


class Rounds:
    """A `request.Sampler` for the coroutines of one event loop.

    In a round all that was asked since the last is dealt to the banks, in the order of its seeds, and each bank decodes
    a chunk of tokens. Where callers only compute between two requests, and wait for nothing else, rounds are always the
    same, and so is every bit, with prefixes used again too.

    When weights change, what is under way keeps the tokens it has drawn and is read again under the new weights. So all
    that the future depends on is tokens; those can be saved (`begun`) and taken up again (``begun`` of `complete`).
    """

    def __init__(
        self,
        engine: Engine,
        weights: nnx.State,
        *,
        version: int = 0,
        reuse: bool = True,
        turns: asyncio.Lock | None = None,
    ):
        """``version`` is the number of the policy, for `Completion.versions`.

        With the ``turns`` of others on the same devices, one round is under way at a time.
        """
        key, banks = jax.random.key(0), engine.banks_for(weights)
        self._engine = engine
        self._banks = [Bank(engine, weights, key, version=version, reuse=reuse) for _ in range(banks)]
        self._open: dict[int, _Open] = {}
        self._tickets = itertools.count()
        self._driver: asyncio.Task[None] | None = None
        self._paused = False
        self.turns = turns or asyncio.Lock()

    @property
    def account(self) -> Account:
        """What the banks have done, added up."""
        return sum((bank.account for bank in self._banks), Account())

    async def complete(self, request: Request, begun: Completion | None = None) -> Completion:
        """The response to one request, of which some may have been drawn before (``begun``, from `begun`).

        Raises:
          ValueError: what `Engine.check` finds.
        """
        self._engine.check(request)
        ticket, future = next(self._tickets), asyncio.get_running_loop().create_future()
        self._open[ticket] = _Open(request, begun, future)
        if self._driver is None and not self._paused:
            self._drive()
        try:
            return await future
        finally:
            entry = self._open.pop(ticket, None)
            if entry and entry.bank:
                entry.bank.cancel(ticket)

    async def begun(self) -> dict[int, Completion | None]:
        """What open requests, by their ``id``, have drawn so far, once no round is under way; None is nothing."""
        async with self.turns:
            held = self._held()
        return {id(entry.request): self._so_far(ticket, entry, held) for ticket, entry in self._open.items()}

    async def pause(self) -> None:
        """Lets the round that is under way end, and callers go on as far as they can without another.

        Until `resume` or `update_weights` there is no other.
        """
        self._paused = True
        if self._driver is not None:
            await self._driver
        await self._quiet()

    def resume(self) -> None:
        """Goes on after a `pause`."""
        self._paused = False
        if self._open and self._driver is None:
            self._drive()

    async def update_weights(self, weights: nnx.State, version: int) -> None:
        """Goes on with other weights (from `Engine.load`)."""
        await self.pause()
        held = self._held()
        for ticket, entry in self._open.items():
            entry.begun, entry.bank = self._so_far(ticket, entry, held), None
        for bank in self._banks:
            bank.clear()
            bank.update_weights(weights, version)
        self.resume()

    def _held(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {ticket: drawn for bank in self._banks for ticket, drawn in bank.so_far().items()}

    def _so_far(self, ticket: int, entry: _Open, held: dict[int, tuple[np.ndarray, np.ndarray]]) -> Completion | None:
        if ticket not in held or entry.bank is None:
            return entry.begun
        tokens, logprobs = held[ticket]
        versions = np.full(len(tokens), entry.bank.version, np.int32)
        return joined(entry.begun, Completion(tokens, logprobs, "", versions=versions))

    def _drive(self) -> None:
        self._driver = asyncio.get_running_loop().create_task(self._rounds())

    async def _rounds(self) -> None:
        try:
            while True:
                await self._quiet()
                self._deal()
                busy = [bank for bank in self._banks if bank.busy]
                if not busy or self._paused:
                    return
                async with self.turns:
                    rounds = await asyncio.gather(*(asyncio.to_thread(bank.poll) for bank in busy))
                for finished in rounds:
                    for ticket, completion in finished:
                        self._answer(ticket, completion)
        except Exception as error:
            for entry in self._open.values():  # they are who waits
                if not entry.future.done():
                    entry.future.set_exception(error)
        finally:
            self._driver = None

    async def _quiet(self) -> None:
        """Waits until every caller that can go on has done so."""
        quiet, asked = 0, len(self._open)
        while quiet < QUIET:
            await asyncio.sleep(0)
            quiet = quiet + 1 if asked == len(self._open) else 0
            asked = len(self._open)

    def _deal(self) -> None:
        for ticket, entry in sorted(self._open.items(), key=lambda item: item[1].request.seed):
            if entry.bank is None and not entry.future.done():
                request = continued(entry.request, entry.begun)
                prompt = np.asarray(request.prompt, np.int32)
                room = [bank for bank in self._banks if bank.load < self._engine.limits.slots] or self._banks
                entry.bank = max(room, key=lambda bank: (bank.prefix(prompt)[1], -bank.load))
                entry.bank.submit(ticket, request)

    def _answer(self, ticket: int, completion: Completion) -> None:
        entry = self._open.get(ticket)
        if entry and not entry.future.done():
            entry.bank = None
            entry.future.set_result(joined(entry.begun, completion))


def continued(request: Request, begun: Completion | None) -> Request:
    """The request for the rest of a response; what is drawn for it derives from the seed and from where it begins."""
    if begun is None or not len(begun.tokens):
        return request
    count = len(begun.tokens)
    return dataclasses.replace(
        request,
        prompt=(*request.prompt, *begun.tokens.tolist()),
        seed=int(np.random.SeedSequence([request.seed, count]).generate_state(1)[0]),
        max_tokens=request.max_tokens - count,
    )


def joined(first: Completion | None, rest: Completion) -> Completion:
    """Two parts of one response, the second with its reason to end."""
    if first is None:
        return rest
    assert first.versions is not None and rest.versions is not None
    return dataclasses.replace(
        rest,
        tokens=np.concatenate([first.tokens, rest.tokens]),
        logprobs=np.concatenate([first.logprobs, rest.logprobs]),
        drafted=first.drafted + rest.drafted,
        kept=first.kept + rest.kept,
        versions=np.concatenate([first.versions, rest.versions]),
    )
