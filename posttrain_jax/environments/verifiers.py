"""Environments of the package ``verifiers`` (its API ``verifiers.v1``) as worlds; needs ``pip install verifiers``.

The package runs an episode by itself: its tools, its user, its stop conditions and its rewards. Where it asks a model,
it asks an endpoint of ours, and what it says there is what our agent observes; the agent's answer is the endpoint's.
So tokens stay ours, and only messages cross. The package's event loop is a thread of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import dataclasses
import itertools
import json
import sys
import threading
import urllib.request
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from posttrain_jax.chat.format import Message
from posttrain_jax.chat.messages import ChatError, calls_of, visible_text
from posttrain_jax.environments.environment import EnvironmentFailure, Observation, Step
from posttrain_jax.environments.repository import chosen
from posttrain_jax.errors import UserError

MOST = 4096  # tasks that are taken of a set without end
HARNESS = "posttrain_jax_chat"  # the name of `verifiers_harness` to the package, which knows top-level modules alone
HOST = "127.0.0.1"
GRACE = 5.0  # seconds for the package's servers to end with the process
REPLACED = ("bash", "null")  # harnesses of the package whose place ours takes: a chat, with the task's tools

Result = TypeVar("Result")


class Verifiers:
    """One episode of a loaded environment; the tasks are the environment's, a seed chooses one."""

    def __init__(self, loaded: Loaded):
        self._loaded = loaded
        self._exchange: Exchange | None = None
        self._count = 0

    async def reset(self, seed: int) -> Observation:
        """The conversation as the environment opens it, and its tools."""
        self._exchange = await self._loaded.begin(chosen(self._loaded.tasks, seed))
        asked = await self._there(self._exchange.next())
        if isinstance(asked, Ended):
            raise EnvironmentFailure(f"verifiers: the episode ended before anything was asked: {asked.info}")
        self._count = len(asked.messages)
        return Observation(asked.messages, asked.tools)

    async def step(self, message: Message) -> Step:
        """What the environment says to an answer, or its reward where the episode ended."""
        if self._exchange is None:
            raise ValueError("step before reset")
        asked = await self._there(self._exchange.answer(message))
        if isinstance(asked, Ended):
            return Step(reward=asked.reward, done=True, info=asked.info)
        news, self._count = asked.messages[self._count + 1 :], len(asked.messages)
        return Step(news)

    async def close(self) -> None:
        """Gives up what is still going on."""
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            await self._there(exchange.close())

    async def _there(self, work: Coroutine[Any, Any, Result]) -> Result:
        return await asyncio.wrap_future(self._loaded.start(work))


@dataclasses.dataclass(frozen=True)
class Asked:
    """A model is asked: the whole conversation, and the tools."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Ended:
    """The episode is over."""

    reward: float
    info: dict[str, Any]


class Exchange:
    """An episode's requests to a model, one at a time, and our answers; lives in the package's event loop."""

    def __init__(self, episode: Coroutine[Any, Any, Any]):
        self._asked: asyncio.Queue[Asked] = asyncio.Queue()
        self._reply: asyncio.Future[dict[str, Any]] | None = None
        self._said: list[Mapping[str, Any]] = []
        self._turns = itertools.count()
        self._own: set[str] = set()  # ids of calls that are ours, and nothing that the model wrote
        self._episode = asyncio.ensure_future(episode)

    async def request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request of chat completions.

        Raises:
          EnvironmentFailure: it does not go on from the conversation so far, or another one is still open.
        """
        messages = [_plain(message) for message in body["messages"]]
        for before, now in itertools.zip_longest(self._said, messages[: len(self._said)]):
            if now is None or before["role"] != now["role"] or (now["role"] != "assistant" and before != now):
                raise EnvironmentFailure(f"verifiers: the conversation was rewritten: {now!r:.200} was {before!r:.200}")
        if self._reply is not None:
            raise EnvironmentFailure("verifiers: two requests at once; only one agent is played")
        self._reply = asyncio.get_running_loop().create_future()
        shown = [{k: v for k, v in m.items() if k != "tool_call_id" or v not in self._own} for m in messages]
        self._asked.put_nowait(Asked(shown, body.get("tools") or ()))
        try:
            said = await self._reply
        finally:
            self._reply = None
        self._said = [*messages, said]
        return said

    async def answer(self, message: Message) -> Asked | Ended:
        """Takes our answer; what comes of it."""
        if self._reply is None:
            raise EnvironmentFailure("verifiers: nobody waits for an answer")
        self._reply.set_result(self._written(message))
        return await self.next()

    async def next(self) -> Asked | Ended:
        """The next request, or the end.

        Raises:
          EnvironmentFailure: the package says that the episode failed.
        """
        asked = asyncio.ensure_future(self._asked.get())
        try:
            await asyncio.wait((asked, self._episode), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
        finally:
            asked.cancel()
        try:
            return _ended(self._episode.result())
        except EnvironmentFailure:
            raise
        except Exception as error:
            raise EnvironmentFailure(f"verifiers: {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Ends the episode, if it has not."""
        self._episode.cancel()
        await asyncio.wait((self._episode,))
        if not self._episode.cancelled():
            self._episode.exception()  # which nobody asks for any more

    def _written(self, message: Message) -> dict[str, Any]:
        """Our answer as the endpoint writes it; calls without an id get one."""
        turn, calls = next(self._turns), []
        for place, call in enumerate(calls_of(message, 0)):
            ident = call.id or f"call_{turn}_{place}"
            if not call.id:
                self._own.add(ident)
            given = call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)
            calls.append({"id": ident, "type": "function", "function": {"name": call.name, "arguments": given}})
        parts = {"content": message.get("content") or "", "reasoning_content": message.get("reasoning_content")}
        return {"role": "assistant", **parts, **({"tool_calls": calls} if calls else {})}


class Loaded:
    """An environment of the package, ready to be played by any number of episodes at once.

    Attributes:
      tasks: what it asks; of a set without end, the first `MOST`.
    """

    def __init__(self, name: str):
        """``name`` is the environment's, and perhaps its settings: ``wordle?game=Wordle-v0``.

        Raises:
          UserError: the package, or the environment, is missing, or it cannot be played here.
        """
        ident, _, options = name.partition("?")
        vf = _package()
        self._environment = _environment(vf, ident, dict(parse_qsl(options)))
        taskset = self._environment.taskset
        self.tasks = list(taskset if taskset.bounded else taskset.take(MOST))
        if not self.tasks:
            raise UserError(f"the verifiers environment {ident!r} has no tasks")
        if (proxy := urllib.request.getproxies().get("http")) and not urllib.request.proxy_bypass(HOST):
            raise UserError(f"http_proxy={proxy}: the package verifiers would ask it for {HOST}; set no_proxy={HOST}")
        self._serving: asyncio.Future[None] | None = None

    def question(self, seed: int) -> str:
        """What the task of a seed asks, in words; it decides the split."""
        task = chosen(self.tasks, seed)
        return task.data.prompt_text or task.key

    def start(self, work: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Runs work in the package's event loop."""
        return asyncio.run_coroutine_threadsafe(work, _loop())

    async def begin(self, task: Any) -> Exchange:
        """An episode of a task."""
        return await asyncio.wrap_future(self.start(self._begun(task)))

    async def _begun(self, task: Any) -> Exchange:
        vf = _package()
        if self._serving is None:
            self._serving = asyncio.ensure_future(_held(self._environment))
        await asyncio.shield(self._serving)
        url, exchanges = await _endpoint()
        number = str(next(_numbers))
        client = vf.EvalClientConfig(base_url=f"{url}/{number}/v1", api_key_var="NONE")

        async def episode() -> Any:
            try:
                return await self._environment.run_episode(task, vf.ModelContext(model="policy", client=client))
            finally:
                del exchanges[number]

        exchanges[number] = Exchange(episode())
        return exchanges[number]


def _package() -> Any:
    try:
        import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]

        from posttrain_jax.environments import verifiers_harness
    except ImportError as error:
        raise UserError(f"the package verifiers 0.4 is not there ({error}): pip install 'verifiers>=0.4'") from error
    sys.modules[HARNESS] = verifiers_harness
    return vf


def _environment(vf: Any, ident: str, options: dict[str, str]) -> Any:
    """The environment of a name, its one agent played by a chat with the task's tools.

    Raises:
      UserError: it is not installed, has other agents than one, or wants a program or a container for it.
    """
    try:
        kind = vf.env_config_type(ident)
        roles = [name for name, field in kind.model_fields.items() if isinstance(field.default, vf.AgentConfig)]
        if len(roles) != 1:
            raise UserError(f"the verifiers environment {ident!r} has the agents {', '.join(roles)}: one can be played")
        harness = getattr(kind.model_fields[roles[0]].default.harness, "id", None) or vf.default_harness_id(ident)
        if harness not in REPLACED:
            raise UserError(f"the verifiers environment {ident!r} is played by the program {harness!r}, not by a chat")
        role = {roles[0]: {"harness": {"id": HARNESS}, "runtime": {"type": "subprocess"}}}
        found = vf.load_environment(kind.model_validate({"taskset": {"id": ident, **options}, **role}))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"no verifiers environment {ident!r}: {' '.join(str(error).split())}") from error
    if found.taskset.task_type().NEEDS_CONTAINER:
        raise UserError(f"the verifiers environment {ident!r} wants a container, and there is none here")
    return found


def _ended(episode: Any) -> Ended:
    if not episode.ok or len(episode.traces) != 1:
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        said = "; ".join(f"{error.type}: {error.message}" for error in errors)
        raise EnvironmentFailure(f"verifiers: {said or f'{len(episode.traces)} runs of the agent, not one'}")
    [trace] = episode.traces
    parts = {name: reward.value for name, reward in trace.rewards.items() if reward is not None}
    return Ended(float(trace.reward), {"rewards": parts, "metrics": dict(trace.metrics), "stop": trace.stop_condition})


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of the wire with its content as text."""
    try:
        return {**message, "content": visible_text(message, 0)}
    except ChatError as error:
        raise EnvironmentFailure(f"verifiers: {error}") from error


# One event loop and one endpoint for all environments of the package.
_numbers = itertools.count()
_lock = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []
_endpoints: list[tuple[str, dict[str, Exchange]]] = []
_servers: list[asyncio.Task[None]] = []


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        if not _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="verifiers", daemon=True).start()
            atexit.register(lambda: asyncio.run_coroutine_threadsafe(_leave(), loop).result())
            _loops.append(loop)
        return _loops[0]


async def _leave() -> None:
    for server in _servers:
        server.cancel()
    if _servers:
        await asyncio.wait(_servers, timeout=GRACE)


async def _held(environment: Any) -> None:
    """Brings an environment's servers up; they stay until the process ends."""
    up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        try:
            async with environment.serving():
                up.set_result(None)
                await asyncio.Event().wait()
        except Exception as error:
            if up.done():
                raise
            up.set_exception(EnvironmentFailure(f"verifiers: {type(error).__name__}: {error}"))

    _servers.append(asyncio.ensure_future(serve()))
    await up


async def _endpoint() -> tuple[str, dict[str, Exchange]]:
    """Where the package finds its model, and the exchanges by the first part of a path there."""
    if _endpoints:
        return _endpoints[0]
    from aiohttp import web  # pyright: ignore[reportMissingImports]

    exchanges: dict[str, Exchange] = {}

    async def complete(request: web.Request) -> web.Response:
        exchange = exchanges.get(request.match_info["number"])
        try:
            if exchange is None:
                raise EnvironmentFailure("verifiers: a request of an episode that is over")
            message = await exchange.request(await request.json())
        except EnvironmentFailure as error:
            return web.json_response({"error": {"message": str(error)}}, status=400)
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}
        said = {"id": "policy", "object": "chat.completion", "created": 0, "model": "policy", "choices": [choice]}
        return web.json_response(said)

    application = web.Application(client_max_size=1 << 30)
    application.router.add_post("/{number}/v1/chat/completions", complete)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    address = runner.addresses[0]
    if not _endpoints:  # another episode may have begun meanwhile
        _endpoints.append((f"http://{address[0]}:{address[1]}", exchanges))
    return _endpoints[0]
