"""The HTTP side: who is asked what, and that a client that goes away takes its requests with it.

* ``POST /v1/chat/completions``, ``POST /v1/completions``, ``GET /v1/models``: OpenAI's.
* ``GET /health``: 200 as long as the engine answers.
* ``POST /update_weights``: ``{"path": …, "version": …}``; what is under way goes on, with other weights.

With ``return_token_ids`` answers bring ``token_ids``, ``prompt_token_ids`` and, for each token, the number of the
policy that drew it in ``policy_versions``. ``seed`` decides all that is sampled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from starlette.applications import Starlette
from starlette.requests import Request as Http
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from posttrain_jax.chat.format import Chat
from posttrain_jax.rollout.request import Completion, Request
from posttrain_jax.rollout.service import Service
from posttrain_jax.serving import errors, writing
from posttrain_jax.serving.errors import Refused
from posttrain_jax.serving.reading import Asked, Fields, read_chat, read_completion
from posttrain_jax.serving.unfolding import UnfoldingMessage, UnfoldingText, text_of

News = tuple[int, np.ndarray, np.ndarray, Completion | None]


def make_app(service: Service, chat: Chat, name: str, read_weights: Callable[[Path], nnx.State]) -> Starlette:
    """The application, for any ASGI server.

    Args:
      service: samples; stays the caller's to close.
      chat: the family's format and tokenizer.
      name: of the model, to clients.
      read_weights: from a path to what `Service.update_weights` takes; raises UserError.
    """
    api = _Api(service, chat, name, read_weights)
    routes = [
        Route("/v1/chat/completions", api.chat_completions, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/health", api.health),
        Route("/update_weights", api.update_weights, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers=errors.HANDLERS)


class _Api:
    def __init__(self, service: Service, chat: Chat, name: str, read_weights: Callable[[Path], nnx.State]):
        self.service, self.chat, self.name, self.read_weights = service, chat, name, read_weights
        self._began = int(time.time())
        self._updating = asyncio.Lock()
        self._updated: tuple[str, int] | None = None

    # what is asked

    async def models(self, _: Http) -> Response:
        longest = self.service.engine.limits.positions
        model = {"id": self.name, "object": "model", "created": self._began, "owned_by": "posttrain_jax"}
        return JSONResponse({"object": "list", "data": [{**model, "max_model_len": longest}]})

    async def health(self, _: Http) -> Response:
        if self.service.ended:
            raise Refused(self.service.ended, status=503)
        return JSONResponse({"status": "ok", "policy_version": self.service.version})

    async def update_weights(self, http: Http) -> Response:
        fields = Fields(await _json(http))
        path = fields.take("path", str)
        async with self._updating:
            current = self.service.version
            version = fields.number("version", int, current + 1, 0, 2**31 - 1)
            if self._updated != (path, version):  # else the client asks again, because it has missed the answer
                if version <= current:
                    raise Refused(f"version={version}: the policy has {current} already", "version")
                weights = await asyncio.to_thread(self.read_weights, Path(path).expanduser())
                with _unavailable():
                    await asyncio.to_thread(self.service.update_weights, weights, version)
                self._updated = path, version
        return JSONResponse({"success": True, "policy_version": version})

    async def chat_completions(self, http: Http) -> Response:
        body = await self._for_this_model(http)
        asked = read_chat(body, self.chat, self.service.engine)
        head = self._head("chatcmpl", "chat.completion")
        if asked.stream:
            head |= {"object": "chat.completion.chunk"}
            return self._streamed(asked, head, partial(self._message_pieces, asked, head["id"]))
        completions = await self._sampled(http, asked.requests)
        choices = []
        for index, completion in enumerate(completions):
            message = writing.read_message(self.chat, completion, asked, f"{head['id']}_{index}")
            choices.append(self._choice(asked, index, completion, {"message": message}, plain=False))
        told = {"prompt_token_ids": asked.prompts[0]} if asked.ids else {}
        return self._whole(asked, {**head, **told}, choices, completions)

    async def completions(self, http: Http) -> Response:
        body = await self._for_this_model(http)
        asked = read_completion(body, self.chat, self.service.engine)
        head = self._head("cmpl", "text_completion")
        if asked.stream:
            return self._streamed(asked, head, partial(self._text_pieces, asked))
        completions = await self._sampled(http, asked.requests)
        choices = []
        for index, completion in enumerate(completions):
            said = {"text": text_of(self.chat, completion.tokens, final=True)}
            if asked.ids:
                said |= {"prompt_token_ids": list(asked.requests[index].prompt)}
            choices.append(self._choice(asked, index, completion, said, plain=True))
        return self._whole(asked, head, choices, completions)

    # how it is answered

    async def _for_this_model(self, http: Http) -> Any:
        body = await _json(http)
        model = Fields(body).take("model", str, self.name)
        if model != self.name:
            message = f"model={model!r} is not served here; the model is {self.name!r}"
            raise Refused(message, "model", status=404, code="model_not_found")
        return body

    def _head(self, prefix: str, kind: str) -> dict[str, Any]:
        head = {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time())}
        return {**head, "model": self.name, "system_fingerprint": f"policy-{self.service.version}"}

    def _choice(self, asked: Asked, index: int, completion: Completion, said: dict, *, plain: bool) -> dict[str, Any]:
        called = "message" in said and "tool_calls" in said["message"]
        more = writing.details(asked, self.chat, completion.tokens, completion.logprobs, plain=plain)
        ending = writing.ending(completion, called)
        return {"index": index, **said, "logprobs": None, **more, **ending, **writing.versions(asked, completion)}

    def _whole(self, asked: Asked, head: dict, choices: list[dict], completions: list[Completion]) -> Response:
        drawn = sum(len(completion.tokens) for completion in completions)
        return JSONResponse({**head, "choices": choices, "usage": writing.usage(asked, drawn)})

    async def _sampled(self, http: Http, requests: list[Request]) -> list[Completion]:
        """The completions; if the client goes away, its requests are cancelled."""
        with _unavailable():
            work = asyncio.gather(*map(self.service.complete, requests))
            gone = asyncio.ensure_future(_gone(http))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise Refused("the client has gone", status=errors.GONE)
                return work.result()
            finally:
                work.cancel()
                gone.cancel()

    def _streamed(self, asked: Asked, head: dict, pieces: Callable[[], Callable[..., dict]]) -> Response:
        """Events as answers are written; ``pieces()`` makes what reads one choice's news."""

        async def events() -> AsyncIterator[str]:
            readers = [pieces() for _ in asked.requests]
            drawn = 0
            try:
                with _unavailable():
                    async with contextlib.aclosing(self._news(asked.requests)) as news:
                        async for index, tokens, logprobs, completion in news:
                            choice = {"index": index, "logprobs": None, **readers[index](tokens, logprobs, completion)}
                            drawn += len(tokens) if completion else 0
                            yield writing.event({**head, "choices": [choice]})
            except Refused as error:
                yield writing.event(errors.body(str(error), error.status))
                return
            if asked.usage:
                yield writing.event({**head, "choices": [], "usage": writing.usage(asked, drawn)})
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def _news(self, requests: list[Request]) -> AsyncGenerator[News, None]:
        """All that each request has drawn, whenever that is more, and in the end its completion."""
        loop, news = asyncio.get_running_loop(), asyncio.Queue()

        def tell(*item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all who listen
                loop.call_soon_threadsafe(news.put_nowait, item)

        def through(index: int, future: Future[Completion]) -> None:
            tell(index, None, None, future)

        futures: list[Future[Completion]] = []
        try:
            for index, request in enumerate(requests):
                watch = lambda tokens, logprobs, index=index: tell(index, tokens, logprobs, None)  # noqa: E731
                futures.append(self.service.submit(request, watch))
                futures[-1].add_done_callback(partial(through, index))
            left, told = len(futures), [0] * len(futures)
            while left:
                index, tokens, logprobs, future = await news.get()
                completion = future.result() if future else None
                if completion:
                    tokens, logprobs, left = completion.tokens, completion.logprobs, left - 1
                if completion or len(tokens) > told[index]:
                    told[index] = len(tokens)
                    yield index, tokens, logprobs, completion
        finally:
            for future in futures:
                future.cancel()

    def _message_pieces(self, asked: Asked, name: str) -> Callable[..., dict]:
        """Reads one chat choice's news into the chunks' choices."""
        message, told = UnfoldingMessage(self.chat, asked.tools, asked.thinking), 0

        def read(tokens: np.ndarray, logprobs: np.ndarray, completion: Completion | None) -> dict[str, Any]:
            nonlocal told
            delta: dict[str, Any] = {} if told else {"role": "assistant"}
            new = writing.details(asked, self.chat, tokens[told:], logprobs[told:], plain=False)
            told = len(tokens)
            if completion is None:
                return {"delta": delta | message.more(tokens), **new, "finish_reason": None}
            said = writing.read_message(self.chat, completion, asked, name)
            ending = writing.ending(completion, "tool_calls" in said)
            return {"delta": delta | message.end(said), **new, **ending, **writing.versions(asked, completion)}

        return read

    def _text_pieces(self, asked: Asked) -> Callable[..., dict]:
        """Reads one plain choice's news into the chunks' choices."""
        text, told, offset = UnfoldingText(self.chat), 0, 0

        def read(tokens: np.ndarray, logprobs: np.ndarray, completion: Completion | None) -> dict[str, Any]:
            nonlocal told, offset
            new = writing.details(asked, self.chat, tokens[told:], logprobs[told:], plain=True, offset=offset)
            said = {"text": text.more(tokens, final=completion is not None), **new}
            told, offset = len(tokens), offset + sum(len(self.chat.tokenizer.decode([t])) for t in tokens[told:])
            if completion is None:
                return {**said, "finish_reason": None}
            return {**said, **writing.ending(completion), **writing.versions(asked, completion)}

        return read


async def _json(http: Http) -> Any:
    try:
        return json.loads(await http.body())
    except ValueError as error:
        raise Refused(f"the body is not JSON: {error}") from error


async def _gone(http: Http) -> None:
    """Returns when the client has closed its connection."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


@contextlib.contextmanager
def _unavailable():
    """A service that is closed or broken is told as 503."""
    try:
        yield
    except RuntimeError as error:
        raise Refused(str(error), status=503) from error
