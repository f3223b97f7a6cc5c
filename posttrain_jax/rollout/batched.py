"""A sampler without threads: what is asked at the same moment is answered by one call of the engine."""

from __future__ import annotations

import asyncio

from flax import nnx

from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Completion, Request


class Batched:
    """A `request.Sampler` over `Engine.complete`, for engines of any number of processes.

    All processes must ask the same, in one order: event loops do, where nothing else is awaited.
    """

    def __init__(self, engine: Engine, weights: nnx.State):
        self._engine, self._weights = engine, weights
        self._waiting: list[tuple[Request, asyncio.Future[Completion]]] = []

    async def complete(self, request: Request) -> Completion:
        """The response to one request, once all that can run has run.

        Raises:
          ValueError: what `Engine.check` finds.
        """
        self._engine.check(request)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._answer)
        future: asyncio.Future[Completion] = loop.create_future()
        self._waiting.append((request, future))
        return await future

    def _answer(self) -> None:
        asked, self._waiting = self._waiting, []
        try:
            answers = self._engine.complete(self._weights, [request for request, _ in asked])
        except Exception as error:
            for _, future in asked:
                future.set_exception(error)
            return
        for (_, future), answer in zip(asked, answers, strict=True):
            if not future.cancelled():
                future.set_result(answer)
