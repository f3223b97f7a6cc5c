"""OpenAI-style messages, tools and calls, checked: what every family's format needs before it can write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from posttrain_jax.errors import UserError

ROLES = ("system", "user", "assistant", "tool")


class ChatError(UserError, ValueError):
    """A conversation that cannot be written."""


def check_roles(messages: Sequence[Mapping[str, Any]], system_anywhere: bool = False) -> None:
    """Refuse unknown roles, tool results that answer no call, and a system message that is not first.

    Args:
      messages: the conversation.
      system_anywhere: the family can write a system message in any place.

    Raises:
      ChatError: names the message by its index.
    """
    called = False
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ChatError(f"message {index} is {type(message).__name__}; expected a dict with role and content")
        role = message.get("role")
        if role not in ROLES:
            raise ChatError(f"message {index} has role {role!r}; expected one of {', '.join(ROLES)}")
        if role == "system" and index > 0 and not system_anywhere:
            raise ChatError(f"message {index} is a system message; only the first message can be one")
        if role == "assistant":
            called = bool(message.get("tool_calls"))
        if role == "tool" and not called:
            raise ChatError(f"message {index} is a tool result, but the assistant turn before it calls no tool")


def last_of(role: str, messages: Sequence[Mapping[str, Any]]) -> int:
    """Index of the last message of a role; -1 where there is none."""
    return max((index for index, message in enumerate(messages) if message["role"] == role), default=-1)


def visible_text(message: Mapping[str, Any], index: int) -> str:
    """The text of a message's content; absent content is empty.

    Raises:
      ChatError: content that is neither a string nor a list of text parts.
    """
    content = message.get("content")
    if content is None:
        return ""
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise ChatError(f"message {index} has content of type {type(content).__name__}; expected text")
    return "".join(part_text(part, index) for part in parts)


def part_text(part: Any, index: int) -> str:
    """The text of one element of a content list: a string, or a dict with ``output`` or ``text``."""
    text = part
    if isinstance(part, Mapping):
        text = part.get("output", part.get("text"))
    if not isinstance(text, str):
        raise ChatError(f"message {index} has a content part that is not text: {part!r:.80}")
    return text


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The function inside a tool or a tool call, which may be given bare.

    Raises:
      ChatError: a function without a name.
    """
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ChatError(f"tool {tool!r:.80} has no name")
    return function


class Call(NamedTuple):
    """One tool call of a message: the function's name, its arguments as given, and the call's id where it has one."""

    name: str
    arguments: Any
    id: str | None

    def values(self, index: int) -> dict[str, Any]:
        """The arguments by name; they may have been given as JSON text.

        Raises:
          ChatError: arguments that are not an object; ``index`` is the message's, for the error.
        """
        arguments = self.arguments
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except json.JSONDecodeError as error:
                raise ChatError(f"message {index}: arguments of {self.name!r} are not JSON: {error}") from error
        if not isinstance(arguments, Mapping):
            raise ChatError(f"message {index}: arguments of {self.name!r} are {arguments!r:.80}; expected an object")
        return dict(arguments)


def calls_of(message: Mapping[str, Any], index: int) -> list[Call]:
    """The tool calls of a message.

    Raises:
      ChatError: a call without a name.
    """
    calls = []
    for call in message.get("tool_calls") or ():
        try:
            function = function_of(call)
        except ChatError as error:
            raise ChatError(f"message {index} has a tool call without a name: {call!r:.80}") from error
        calls.append(Call(function["name"], function.get("arguments") or {}, call.get("id")))
    return calls


def reasoning_of(message: Mapping[str, Any], index: int) -> str | None:
    """The reasoning that a message brings in its own field.

    Raises:
      ChatError: reasoning that is not text.
    """
    reasoning = message.get("reasoning_content")
    if not isinstance(reasoning, str | None):
        raise ChatError(f"message {index} has reasoning_content of type {type(reasoning).__name__}; expected text")
    return reasoning


def reasoning_and_content(message: Mapping[str, Any], index: int) -> tuple[str, str]:
    """Reasoning from its own field or, without one, from a ``<think>`` block inside the content."""
    content, reasoning = visible_text(message, index), reasoning_of(message, index)
    if reasoning is not None or "</think>" not in content:
        return reasoning or "", content
    before, after = content.split("</think>")[0], content.split("</think>")[-1]
    return before.strip("\n").split("<think>")[-1].strip("\n"), after.strip("\n")


def to_json(value: Any) -> str:
    """JSON as the released templates write it: ``", "`` and ``": "``, and no escapes beyond ASCII."""
    return json.dumps(value, ensure_ascii=False)


def plain_or_json(value: Any) -> str:
    """An argument between tags: a string as it is, every other value as JSON."""
    return value if isinstance(value, str) else to_json(value)
