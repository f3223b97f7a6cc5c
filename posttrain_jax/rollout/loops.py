"""Event loops for callers that have none: one that rests between two calls, and one that goes on beside them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class Resting:
    """Tasks that a call leaves behind stand still until the next call."""

    def __init__(self):
        self._runner = asyncio.Runner()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """What the coroutine returns."""
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Cancels all tasks."""
        self._runner.close()


class Looped:
    """Tasks that a call leaves behind go on, in a thread of their own."""

    def __init__(self):
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """What the coroutine returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Cancels all tasks."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._runner.close()
