"""An engine that is always on: requests from anywhere, at any time, each answered when it is through."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

import jax
import numpy as np
from flax import nnx

from posttrain_jax.rollout.bank import Bank
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Completion, Request
from posttrain_jax.rollout.seats import Account

Watch = Callable[[np.ndarray, np.ndarray], None]


class Service:
    """A `request.Sampler` over an engine: each of its banks decodes in a thread of its own.

    A request goes to the bank that holds most of its prompt, or to the one with least to do. What it samples is a
    function of the weights, its prompt and its seed; see `Bank` for the last bits.

        with Service(engine, engine.load(weights)) as service:
            completions = await asyncio.gather(*map(service.complete, requests))
    """

    def __init__(self, engine: Engine, weights: nnx.State, *, version: int = 0, reuse: bool = True):
        """Starts the threads; ``version`` is the number of the policy, for `Completion.versions`.

        Raises:
          ValueError: the engine lies on devices of several processes, which must do everything together.
        """
        if engine.sharded and jax.process_count() > 1:
            raise ValueError("a service needs an engine whose devices are all its own process's")
        self.engine, self.version = engine, version
        key, banks = jax.random.key(0), engine.banks_for(weights)
        self._workers = [_Worker(Bank(engine, weights, key, version=version, reuse=reuse)) for _ in range(banks)]
        self._choosing = threading.Lock()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def account(self) -> Account:
        """What the banks have done, added up."""
        return sum((worker.bank.account for worker in self._workers), Account())

    @property
    def ended(self) -> str:
        """Why it answers no more; empty as long as it does."""
        return next((worker.ended for worker in self._workers if worker.ended), "")

    async def complete(self, request: Request) -> Completion:
        """The response to one request; others are served meanwhile. If the caller is cancelled, so is the request.

        Raises:
          ValueError: what `Engine.check` finds.
          RuntimeError: the service is closed, or has broken down.
        """
        return await asyncio.wrap_future(self.submit(request))

    def submit(self, request: Request, watch: Watch | None = None) -> Future[Completion]:
        """`complete` for callers without an event loop.

        ``watch(tokens, logprobs)`` is called after every chunk, in the bank's thread, with all that is drawn so far.
        """
        self.engine.check(request)
        with self._choosing:
            worker = self._nearest(np.asarray(request.prompt, np.int32))
            return worker.submit(request, watch)

    def update_weights(self, weights: nnx.State, version: int) -> None:
        """Draws with other weights (from `Engine.load`) from every bank's next chunk on, without ending anything.

        Returns when all banks have them.
        """
        for taken in [worker.call(lambda bank: bank.update_weights(weights, version)) for worker in self._workers]:
            taken.result()
        self.version = version

    def close(self) -> None:
        """Ends the threads; what is under way is cancelled."""
        for worker in self._workers:
            worker.call(None)
        for worker in self._workers:
            worker.join()

    def _nearest(self, prompt: np.ndarray) -> _Worker:
        room = [worker for worker in self._workers if worker.load < self.engine.limits.slots] or self._workers
        return max(room, key=lambda worker: (worker.bank.prefix(prompt)[1], -worker.load))


class _Worker(threading.Thread):
    """A bank and the thread that polls it; everything that is done to the bank is done there, in order."""

    def __init__(self, bank: Bank):
        super().__init__(name="rollout bank", daemon=True)
        self.bank = bank
        self._actions: queue.SimpleQueue[tuple[Callable[[Bank], object] | None, Future[None]]] = queue.SimpleQueue()
        self._tickets = itertools.count()
        self._open: dict[int, tuple[Future[Completion], Watch | None]] = {}
        self._gate, self.ended = threading.Lock(), ""
        self.start()

    @property
    def load(self) -> int:
        return len(self._open)

    def submit(self, request: Request, watch: Watch | None) -> Future[Completion]:
        future: Future[Completion] = Future()
        ticket = next(self._tickets)
        self._open[ticket] = future, watch
        self.call(lambda bank: ticket in self._open and bank.submit(ticket, request))
        return future

    def call(self, action: Callable[[Bank], object] | None) -> Future[None]:
        """Has something done to the bank, between two polls; None ends the thread."""
        done: Future[None] = Future()
        with self._gate:
            self._actions.put((action, done))
            if self.ended:
                self._end(self.ended)
        return done

    def run(self) -> None:
        reason = "the sampling service is closed"
        try:
            while self._act():
                if self.bank.busy:
                    self._poll()
        except BaseException as error:
            reason = f"the sampling service has broken down: {error!r}"
        with self._gate:
            self._end(reason)

    def _act(self) -> bool:
        """Does what there is to do; waits for it where the bank is idle. False once the service is closed."""
        while not self.bank.busy or not self._actions.empty():
            action, done = self._actions.get()
            self._drop_cancelled()
            if action:
                action(self.bank)
            done.set_result(None)
            if not action:
                return False
        self._drop_cancelled()
        return True

    def _drop_cancelled(self) -> None:
        """Takes those out that nobody waits for any more."""
        for ticket in [ticket for ticket, (future, _) in list(self._open.items()) if future.cancelled()]:
            self.bank.cancel(ticket)
            del self._open[ticket]

    def _poll(self) -> None:
        for ticket, completion in self.bank.poll():
            future, _ = self._open.pop(ticket)
            if future.set_running_or_notify_cancel():
                future.set_result(completion)
        watched = {ticket: watch for ticket, (_, watch) in list(self._open.items()) if watch}
        for ticket, (tokens, logprobs) in (self.bank.so_far() if watched else {}).items():
            if ticket in watched:
                watched[ticket](tokens, logprobs)

    def _end(self, reason: str) -> None:
        """Tells everyone who waits."""
        self.ended = reason
        waiting: list[Future] = [future for future, _ in self._open.values()]
        self._open.clear()
        while not self._actions.empty():
            waiting.append(self._actions.get()[1])
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(RuntimeError(reason))
