"""The chat format of MiniMax-M1 and Text-01 (the template in the released tokenizer_config.json).

A conversation reads ``<begin_of_document><beginning_of_sentence>user name=user\\n…<end_of_sentence>\\n``, then
``<beginning_of_sentence>ai name=assistant\\n…<end_of_sentence>\\n``. An answer of M1 begins with
``<think>\\n…\\n</think>\\n\\n``. The template knows neither reasoning nor tool calls of an answer: it writes the
content alone. We leave reasoning out as it does, except from the answer that is trained on (or everywhere, with
``keep_all_thinking``), and write calls as the tool declaration tells the model to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain_jax.chat.format import Message, Segment, untrained
from posttrain_jax.chat.messages import (
    ChatError,
    calls_of,
    check_roles,
    part_text,
    reasoning_of,
    to_json,
    visible_text,
)
from posttrain_jax.chat.reading import (
    Read,
    Unreadable,
    assistant_message,
    read_block,
    read_each,
    tool_call,
    without_stop,
)
from posttrain_jax.chat.schema import from_json, mismatches, parameter_schemas

DOCUMENT, BEGIN, END = "<begin_of_document>", "<beginning_of_sentence>", "<end_of_sentence>"
THINK, END_THINK = "<think>", "</think>"
CALLS, END_CALLS = "<tool_calls>", "</tool_calls>"

TOOLS_HEAD = "You are provided with these tools:\n<tools>\n"
TOOLS_USE = (
    "</tools>\n\nIf you need to call tools, please respond with <tool_calls></tool_calls> XML tags, and provide "
    "tool-name and json-object of arguments, following the format below:\n<tool_calls>\n"
    "{name: <tool-name-1>, arguments: <args-json-object-1>}\n...\n</tool_calls>"
)

LINE = re.compile(r"\n?[^\n]+")


@dataclass(frozen=True)
class MiniMaxM1:
    """MiniMax-M1's wire format.

    Attributes:
      assistant: the assistant's name in the headers; some copies of the template say ``MiniMax AI``.
      keep_all_thinking: write the reasoning of every answer, for training on interleaved thinking.
    """

    assistant: str = "assistant"
    keep_all_thinking: bool = False

    special_tokens = (DOCUMENT, BEGIN, END, THINK, END_THINK)
    spelled_tokens = (THINK, END_THINK)
    stop_tokens = (END,)
    call_mark = CALLS

    def segments(
        self, messages: Sequence[Message], tools: Sequence[Message], thinking: bool, add_generation_prompt: bool
    ) -> Iterator[Segment]:
        """The conversation from its first character to its last; see ``Chat.render``."""
        yield from self.written(messages, tools, thinking, target=None)
        if add_generation_prompt:
            yield from header(f"ai name={self.assistant}")

    def training(self, messages: Sequence[Message], tools: Sequence[Message], thinking: bool) -> Iterator[Segment]:
        """The conversation, its last answer with the reasoning that leads to it."""
        return self.written(messages, tools, thinking, target=len(messages) - 1)

    def learnt(self, messages: Sequence[Message], thinking: bool) -> set[int]:
        """The last answer, and those that thought nothing; see ``Format.learnt``."""
        everything, last = self.keep_all_thinking or not thinking, len(messages) - 1
        return {
            index
            for index, message in enumerate(messages)
            if message["role"] == "assistant" and (everything or index == last or not reasoning_of(message, index))
        }

    def written(
        self, messages: Sequence[Message], tools: Sequence[Message], thinking: bool, target: int | None
    ) -> Iterator[Segment]:
        """The messages; the answer at ``target`` shows its reasoning."""
        check_roles(messages, system_anywhere=True)
        learnt = None if target is None else self.learnt(messages, thinking)
        yield Segment(DOCUMENT, special=True)
        system = "".join(visible_text(m, index) for index, m in enumerate(messages) if m["role"] == "system")
        if system:
            yield from sentence(f"system ai_setting={self.assistant}", system)
        if tools:
            declared = "".join(to_json(tool) + "\n" for tool in tools)
            yield from sentence("system tool_setting=tools", TOOLS_HEAD + declared + TOOLS_USE)
        names = ToolNames()
        for index, message in enumerate(messages):
            if message["role"] == "user":
                yield from sentence("user name=user", visible_text(message, index))
            elif message["role"] == "assistant":
                names.calls(message, index)
                yield from header(f"ai name={self.assistant}")
                said = self.answer(message, index, thinking and (index == target or self.keep_all_thinking))
                yield from said if learnt is None or index in learnt else untrained(said)
            elif message["role"] == "tool":
                yield from sentence("tool name=tools", results(message, index, names))

    def answer(self, message: Message, index: int, with_reasoning: bool) -> Iterator[Segment]:
        """An assistant turn after its header."""
        reasoning, content = reasoning_of(message, index), visible_text(message, index)
        if reasoning and with_reasoning:
            yield Segment(THINK, special=True, trained=True)
            yield Segment(f"\n{reasoning}\n", trained=True)
            yield Segment(END_THINK, special=True, trained=True)
            yield Segment("\n\n", trained=True)
        yield Segment(content, trained=True)
        if calls := calls_of(message, index):
            lines = (f'{{"name": {to_json(c.name)}, "arguments": {to_json(c.values(index))}}}\n' for c in calls)
            separator = "\n" if content else ""
            yield Segment(f"{separator}{CALLS}\n{''.join(lines)}{END_CALLS}", trained=True)
        yield Segment(END, special=True, trained=True)
        yield Segment("\n")

    def parse(self, text: str, tools: Sequence[Message], thinking: bool) -> dict[str, Any]:
        """The message that an answer stands for; see ``Chat.parse``."""
        text, reasoning, errors = without_stop(text, self.stop_tokens, newline=True), "", []
        if thinking and (text.startswith(THINK) or END_THINK in text.partition(CALLS)[0]):
            reasoning, closed, text = text.removeprefix(THINK).partition(END_THINK)
            reasoning, text = reasoning.removeprefix("\n").removesuffix("\n"), re.sub(r"\A\n{1,2}", "", text)
            errors = [] if closed else [f"{THINK} has no {END_THINK}"]
        content, calls = read_block(
            text,
            CALLS,
            END_CALLS,
            lambda block: read_each(LINE, block, lambda line: read_call(line[0], tools), "tool call"),
        )
        content = content.removesuffix("\n") if calls.items else content
        return assistant_message(content, reasoning, calls.items, [*errors, *calls.errors])


class ToolNames:
    """Which tool a result comes from, when its message does not say: by the call's id, or by the order of the calls."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str | None, str]] = []

    def calls(self, message: Message, index: int) -> None:
        """Takes note of an answer's calls."""
        self._waiting = [(call.id, call.name) for call in calls_of(message, index)]

    def answered(self, message: Message, index: int) -> str:
        """The name of the tool that a message holds the result of.

        Raises:
          ChatError: no call waits for it.
        """
        if isinstance(name := message.get("name"), str):
            return name
        id = message.get("tool_call_id")
        matching = [call for call in self._waiting if id is not None and call[0] == id] or self._waiting[:1]
        if not matching:
            raise ChatError(f"message {index} is a tool result without a name, and no call waits for one")
        self._waiting.remove(matching[0])
        return matching[0][1]


def results(message: Message, index: int, names: ToolNames) -> str:
    """What a tool returned, with its name; each part of a list is a result and may bring a name."""
    content = message.get("content")
    parts = [content or ""] if content is None or isinstance(content, str) else content
    default = (
        None if all(isinstance(part, dict) and "name" in part for part in parts) else names.answered(message, index)
    )
    lines = []
    for part in parts:
        name = part.get("name", default) if isinstance(part, dict) else default
        lines.append(f"tool name: {name}\ntool result: {part_text(part, index)}\n\n")
    return "".join(lines)


def header(name: str) -> Iterator[Segment]:
    yield Segment(BEGIN, special=True)
    yield Segment(name + "\n")


def sentence(name: str, text: str) -> Iterator[Segment]:
    yield from header(name)
    yield Segment(text)
    yield Segment(END, special=True)
    yield Segment("\n")


def read_call(line: str, tools: Sequence[Message]) -> Read:
    """One line of a block of calls: ``{"name": …, "arguments": {…}}``."""
    try:
        call = from_json(line)
    except ValueError as error:
        raise Unreadable(f"tool call is not JSON: {error}") from error
    if not isinstance(call, dict) or set(call) != {"name", "arguments"} or not isinstance(call["name"], str):
        raise Unreadable(f"tool call is {line.strip()!r:.80}; expected an object with name and arguments")
    name, arguments = call["name"], call["arguments"]
    if not isinstance(arguments, dict):
        raise Unreadable(f"arguments of {name!r} are {arguments!r:.80}; expected an object")
    return Read([tool_call(name, arguments)], "", mismatches(arguments, parameter_schemas(tools, name), name))
