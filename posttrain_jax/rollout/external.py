"""An engine in another process: a `request.Sampler` over HTTP. Imports no JAX; needs ``posttrain_jax[serve]``."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np

from posttrain_jax.errors import UserError
from posttrain_jax.rollout.dialects import DIALECTS, Answer, Dialect
from posttrain_jax.rollout.request import Completion, Request

if TYPE_CHECKING:
    from posttrain_jax.models.decoder import Decoder

FINISH = {"stop": "stop", "length": "length", "repetition": "repetition"}
LONGEST_WAIT = 30.0  # seconds between two tries
SLACK = 1e-4  # nats that rounding may lift a log-probability above 0


class ExternalError(UserError, RuntimeError):
    """A server that cannot be reached, or whose answer cannot be trained on."""


class External:
    """Samples from a server that takes and returns token ids.

    The same request with the same seed may be asked again, so what fails on the way is: connections, 429 and 5xx, each
    try after twice the wait. What comes back is checked, for training needs it exact: ids and log-probabilities of
    every token, the stop token included, of the distribution that was drawn from.

        async with External("http://localhost:8000") as sampler:
            episodes = await Agent(sampler, chat, budget).play_all(environments, seeds, concurrency=64)

    To be used in one event loop.

    Attributes:
      version: number of the weights that the server was told to use.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        dialect: str | Dialect = "posttrain_jax",
        concurrency: int = 64,
        timeout: float = 600.0,
        retries: int = 6,
        backoff: float = 0.5,
        api_key: str | None = None,
        version: int = 0,
    ):
        """Connects with the first request.

        Args:
          url: without ``/v1``.
          model: its name there; not needed where there is one.
          dialect: a key of `dialects.DIALECTS`, or one of your own.
          concurrency: most requests at a time; the others wait here.
          timeout: seconds that one try may take.
          retries: tries after the first.
          backoff: seconds before the second try.
          api_key: sent as a bearer token.
          version: of the weights that the server has.

        Raises:
          UserError: an unknown dialect.
        """
        if isinstance(dialect, str) and dialect not in DIALECTS:
            raise UserError(f"dialect={dialect!r} is unknown; known are {', '.join(DIALECTS)}")
        self.dialect = DIALECTS[dialect] if isinstance(dialect, str) else dialect
        self.url, self.model, self.version = url.rstrip("/"), model, version
        self._retries, self._backoff = retries, backoff
        self._places = asyncio.Semaphore(concurrency)
        connections = httpx2.Limits(max_connections=concurrency + 1, max_keepalive_connections=concurrency)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx2.AsyncClient(
            base_url=self.url, timeout=httpx2.Timeout(timeout), limits=connections, headers=headers
        )

    async def __aenter__(self) -> External:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; what is under way fails."""
        await self._client.aclose()

    async def complete(self, request: Request) -> Completion:
        """The response to one request; others are served meanwhile. If the caller is cancelled, so is the request.

        Where weights change meanwhile and the server does not say who drew what, versions are -1.

        Raises:
          ValueError: routing is asked for, which no server tells.
          ExternalError: the server cannot be reached, refuses, or answers without ids or log-probabilities, or with
            such as cannot belong to this request.
        """
        if request.routing:
            raise ValueError("routing is asked for, and a server in another process does not tell the experts")
        async with self._places:
            before = self.version
            said = await self._post(self.dialect.path, self.dialect.ask(request, self.model))
        try:
            answer = self.dialect.read(said)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ExternalError(f"{self._name}: the answer is not of this dialect: {error!r}") from error
        tokens, logprobs = self._checked(request, answer)
        version = before if self.version == before else -1
        versions = answer.versions if answer.versions is not None else [version] * len(tokens)
        return Completion(tokens, logprobs, FINISH[answer.finish or ""], versions=np.asarray(versions, np.int32))

    async def healthy(self) -> bool:
        """Whether the server is there and answers."""
        try:
            return (await self._client.get("/health")).is_success
        except httpx2.TransportError:
            return False

    async def push_weights(self, weights: Path | Decoder, version: int | None = None, *, folder: Path | None = None):
        """Has the server go on with other weights; requests that are under way are not ended by this.

        Args:
          weights: a checkpoint that the server can read, or a model, whose released form is written to ``folder``.
          version: their number, the next one if absent.
          folder: seen by this process and the server.

        Raises:
          ValueError: a model without a folder.
          ExternalError: as `complete`.
        """
        version = self.version + 1 if version is None else version
        path = weights
        if not isinstance(path, Path):
            if folder is None:
                raise ValueError("a model is pushed through a folder that the server sees; none is given")
            from posttrain_jax import hf

            await asyncio.to_thread(hf.save, path, folder)
            path = folder
        for call, body in self.dialect.update(str(path.absolute()), version):
            said = await self._post(call, body)
            if isinstance(said, Mapping) and said.get("success") is False:
                raise ExternalError(f"{self.url}{call}: {said.get('message', said)!r:.200}")
        self.version = version

    @property
    def _name(self) -> str:
        return f"{self.url}{self.dialect.path}"

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What a call returns, asked again as long as that may help."""
        reason = ""
        for tried in range(self._retries + 1):
            if tried:
                await asyncio.sleep(min(self._backoff * 2 ** (tried - 1), LONGEST_WAIT))
            try:
                answer = await self._client.post(path, json=body)
            except httpx2.TransportError as error:
                reason = f"{type(error).__name__} {error}".strip()
                continue
            if answer.is_success:
                return _json(answer)
            reason = f"{answer.status_code} {_message(answer)}"
            if answer.status_code != 429 and answer.status_code < 500:
                raise ExternalError(f"{self.url}{path} refuses: {reason}")
        raise ExternalError(f"{self.url}{path} has failed {self._retries + 1} times, lastly with: {reason}")

    def _checked(self, request: Request, answer: Answer) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and log-probabilities, if they can be trained on."""

        def refuse(what: str) -> ExternalError:
            return ExternalError(f"{self._name}: {what}")

        for name in ("tokens", "logprobs"):
            if getattr(answer, name) is None:
                raise refuse(f"the answer has no {name}; without them it cannot be trained on (see docs/rollout.md)")
        lengths = {
            name: len(values) for name in ("tokens", "logprobs", "versions") if (values := getattr(answer, name))
        }
        tokens, logprobs = answer.tokens or [], answer.logprobs or []
        if len(tokens) != len(logprobs) or len(set(lengths.values())) > 1:
            raise refuse(f"the answer's arrays differ in length: {lengths}")
        if not 1 <= len(tokens) <= request.max_tokens:
            raise refuse(f"the answer has {len(tokens)} tokens; asked for were 1 to {request.max_tokens}")
        if answer.prompt is not None and answer.prompt != list(request.prompt):
            raise refuse(f"the server read another prompt, of {len(answer.prompt)} tokens for {len(request.prompt)}")
        for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            if not isinstance(token, int) or token < 0:
                raise refuse(f"token {place} is {token!r:.40}; expected an id")
            if not isinstance(logprob, int | float) or not math.isfinite(logprob) or logprob > SLACK:
                raise refuse(f"token {place} has log-probability {logprob!r:.40}")
        if answer.finish not in FINISH:
            raise refuse(f"the answer ended for {answer.finish!r}; expected one of {', '.join(FINISH)}")
        return np.asarray(tokens, np.int32), np.asarray(logprobs, np.float32)


def _json(answer: httpx2.Response) -> Any:
    """The body; some servers answer updates without one."""
    try:
        return answer.json()
    except ValueError:
        return None


def _message(answer: httpx2.Response) -> str:
    """What the server says is wrong."""
    said = _json(answer)
    if isinstance(said, Mapping):
        error = said.get("error")
        said = error.get("message") if isinstance(error, Mapping) else said.get("message", said)
    return f"{said if said is not None else answer.text}"[:300]
