"""A judge behind an HTTP endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor as Threads
from pathlib import Path
from typing import Any

from posttrain_jax.rewards.judges.cache import Answers
from posttrain_jax.rewards.judges.judge import JudgeFailed

PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses that another try may mend
REFUSING = {400, 413, 422}  # statuses that say something of this request alone
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
LARGEST = 1 << 24  # bytes of an answer


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a judge elsewhere may cost.

    Attributes:
      timeout: seconds of one try, connection included.
      attempts: tries of one request.
      backoff: seconds before the second try; doubles with each, and varies by half.
      rate: tries started in a second; 0 is no bound.
      concurrency: tries at the same time.
      budget: tries in all, kept with the cache; 0 is no bound.
    """

    timeout: float = 120.0
    attempts: int = 5
    backoff: float = 1.0
    rate: float = 0.0
    concurrency: int = 16
    budget: int = 0


class Refused(JudgeFailed):
    """The server will not answer this request, such as one that is too long."""


class _Passing(Exception):
    """A failure that another try may mend, after ``wait`` seconds if the server said so."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class Endpoint:
    """Asks ``url`` (``…/v1/chat/completions``); `ask` is an `Ask`, so ``Prompted(endpoint.ask)`` is a judge.

    Each request is asked once: answers are kept in ``cache``, and one that is under way is waited for.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        max_tokens: int,
        temperature: float = 0.0,
        key: str = "",
        limits: Limits | None = None,
        cache: Path | None = None,
    ):
        self.url, self.limits, self.answers = url, limits or Limits(), Answers(cache)
        self._body = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._threads = Threads(self.limits.concurrency, thread_name_prefix="judge")
        self._under_way: dict[str, Future[str]] = {}
        self._gate, self._next, self._closed = threading.Lock(), 0.0, threading.Event()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends what waits or is under way, and closes the cache."""
        self._closed.set()
        self._threads.shutdown(cancel_futures=True)
        self.answers.close()

    async def ask(self, messages: list[dict[str, Any]], seed: int) -> str:
        """The answer's text.

        Raises:
          JudgeFailed: with the last failure, after all attempts; or the budget is spent.
        """
        return await self._asked({"messages": messages, "seed": seed}, _content)

    async def answer(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], seed: int) -> dict[str, Any]:
        """The answer's whole message, which may call ``tools``; raises `JudgeFailed` like `ask`."""
        more = {"tools": tools} if tools else {}
        return json.loads(await self._asked({"messages": messages, "seed": seed, **more}, _message))

    async def _asked(self, asked: dict[str, Any], read: Callable[[bytes], str]) -> str:
        body = json.dumps({**self._body, **asked}, sort_keys=True)
        name = hashlib.sha256((body if read is _content else f"{read.__name__} {body}").encode()).hexdigest()
        kept = self.answers.get(name)
        if kept is not None:
            return kept
        future = self._under_way.get(name)
        if future is None:
            future = self._under_way[name] = self._threads.submit(self._tries, name, body.encode(), read)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        finally:
            if future.done():
                self._under_way.pop(name, None)

    def _tries(self, name: str, body: bytes, read: Callable[[bytes], str]) -> str:
        jitter, reason = random.Random(name), "no attempt was allowed"
        for attempt in range(self.limits.attempts):
            self._turn()
            if not self.answers.take(self.limits.budget):
                raise JudgeFailed(f"the budget of {self.limits.budget} calls is spent")
            try:
                answer = read(self._call(body))
            except _Passing as failure:
                reason = str(failure)
                pause = self.limits.backoff * 2**attempt * (0.5 + jitter.random())
                if attempt + 1 < self.limits.attempts:
                    self._wait(min(max(pause, failure.wait), LONGEST_WAIT))
                continue
            self.answers.put(name, answer)
            return answer
        raise JudgeFailed(f"{self.url}: {reason} ({self.limits.attempts} attempts)")

    def _turn(self) -> None:
        """Waits until the rate allows another try."""
        if self.limits.rate:
            with self._gate:
                turn = max(self._next, time.monotonic())
                self._next = turn + 1.0 / self.limits.rate
            self._wait(turn - time.monotonic())

    def _wait(self, seconds: float) -> None:
        if self._closed.wait(max(seconds, 0.0)):
            raise JudgeFailed(f"{self.url}: closed")

    def _call(self, body: bytes) -> bytes:
        deadline = time.monotonic() + self.limits.timeout
        request = urllib.request.Request(self.url, body, self._headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.limits.timeout) as response:
                return _read(response, deadline)
        except urllib.error.HTTPError as error:
            told = error.read(200).decode(errors="replace").strip().partition("\n")[0]
            reason = f"HTTP {error.code} {told}".strip()
            if error.code not in PASSING:
                raise (Refused if error.code in REFUSING else JudgeFailed)(f"{self.url}: {reason}") from error
            raise _Passing(reason, _seconds(error.headers.get("Retry-After"))) from error
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut off
            raise _Passing(f"{type(error).__name__}: {error}") from error


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body, unless it takes too long or is too large."""
    content = bytearray()
    while part := response.read1(1 << 16):
        content += part
        if time.monotonic() > deadline:
            raise TimeoutError("the answer did not end in time")
        if len(content) > LARGEST:
            raise OSError(f"the answer is larger than {LARGEST} bytes")
    return bytes(content)


def _seconds(header: str | None) -> float:
    return float(header) if header and header.isdecimal() else 0.0


def _content(body: bytes) -> str:
    """The text of a chat completion; a model that said nothing said ""."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise _Passing(f"not a chat completion: {body[:80]!r}") from error
    if content is not None and not isinstance(content, str):
        raise _Passing(f"content is not text: {body[:80]!r}")
    return content or ""


def _message(body: bytes) -> str:
    """The message of a chat completion, as JSON."""
    try:
        message = json.loads(body)["choices"][0]["message"]
    except (ValueError, LookupError, TypeError) as error:
        raise _Passing(f"not a chat completion: {body[:80]!r}") from error
    if not isinstance(message, dict):
        raise _Passing(f"the message is no object: {body[:80]!r}")
    return json.dumps(message)
