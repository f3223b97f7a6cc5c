"""The tools of an environment together: calls of a message in, tool messages out."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain_jax.chat.format import Message
from posttrain_jax.chat.messages import Call, ChatError, calls_of
from posttrain_jax.environments.environment import EnvironmentFailure
from posttrain_jax.environments.tools.tool import Tool, ToolError


class Toolbox:
    """Runs calls one after another, in the order in which the model wrote them.

    Whatever goes wrong inside a tool, the model reads it as ``error: …``: an unknown name, wrong arguments, a
    ``ToolError``, any other exception, a tool that takes too long. Only an ``EnvironmentFailure`` passes through.
    """

    def __init__(self, tools: Sequence[Tool], *, seconds: float | None = None, longest: int = 16_000):
        """The tools.

        Args:
          tools: each with its own name.
          seconds: that a call may wait for an asynchronous tool.
          longest: characters of a result; the middle of a longer one is left out.

        Raises:
          ValueError: two tools of one name.
        """
        self._tools = {tool.name: tool for tool in tools}
        if len(self._tools) < len(tools):
            raise ValueError(f"two tools of one name among {', '.join(tool.name for tool in tools)}")
        self._seconds, self._longest = seconds, longest

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    @property
    def declarations(self) -> list[dict[str, Any]]:
        """The tools as a chat declares them."""
        return [tool.declaration for tool in self._tools.values()]

    async def results(self, message: Message) -> list[dict[str, Any]]:
        """A tool message for each call of an answer."""
        return [
            {"role": "tool", "content": await self.call(call)} | ({"tool_call_id": call.id} if call.id else {})
            for call in calls_of(message, 0)
        ]

    async def call(self, call: Call) -> str:
        """What a call comes to, as the model reads it."""
        try:
            return shortened(shown(await self._returned(call)), self._longest)
        except (ToolError, ChatError) as error:
            return shortened(f"error: {error}", self._longest)
        except TimeoutError:
            return f"error: {call.name} took longer than {self._seconds} s"
        except EnvironmentFailure:
            raise
        except Exception as error:  # a tool's own fault is something that the agent has to live with
            return shortened(f"error: {type(error).__name__}: {error}", self._longest)

    async def _returned(self, call: Call) -> Any:
        if call.name not in self._tools:
            near = difflib.get_close_matches(call.name, self._tools, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self._tools)}"
            raise ToolError(f"no tool {call.name!r}; {hint}")
        tool, arguments = self._tools[call.name], call.values(0)
        if problems := tool.problems(arguments):
            raise ToolError("; ".join(problems))
        returned = tool.function(**arguments)
        return await asyncio.wait_for(returned, self._seconds) if inspect.isawaitable(returned) else returned


def shown(value: Any) -> str:
    """A returned value as text: a string as it is, nothing as ``ok``, any other as JSON."""
    if value is None:
        return "ok"
    if isinstance(value, Mapping | list | tuple | int | float | bool):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def shortened(text: str, longest: int) -> str:
    """The text, its middle left out where it is too long."""
    if len(text) <= longest:
        return text
    left = longest // 2
    return f"{text[:left]}\n[{len(text) - longest} characters left out]\n{text[len(text) - (longest - left) :]}"
