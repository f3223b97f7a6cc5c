"""The chat format of MiniMax-M2 (docs/tool_calling_guide.md of MiniMax-AI/MiniMax-M2, and its released template).

A conversation reads ``]~!b[]~b]system\\n…[e~[\\n]~b]user\\n…[e~[\\n]~b]ai\\n<think>\\n…\\n</think>\\n\\n…[e~[\\n``. The
generation prompt ``]~b]ai\\n<think>\\n`` already opens the reasoning, so what the model has to produce begins after it
and ends with ``[e~[``; the newline behind belongs to nobody's answer.

M2 always thinks. ``thinking=False`` closes an empty block for it, ``<think>\\n\\n</think>\\n\\n``, in the generation
prompt and in the turns after the last user message; the block is then part of the prompt and never trained.

The released template writes no block where an answer has no reasoning, and none before the last user message. No prompt
opens such an answer, so neither is trained: an answer that thought nothing is trained with an empty block, which the
prompt opens and the model closes, and an earlier answer in a conversation that ends with it (``Chat.beginnings``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain_jax.chat.format import Message, Segment, untrained
from posttrain_jax.chat.messages import (
    calls_of,
    check_roles,
    function_of,
    last_of,
    part_text,
    plain_or_json,
    reasoning_and_content,
    to_json,
    visible_text,
)
from posttrain_jax.chat.reading import Read, assistant_message, read_block, read_each, read_tagged, without_stop

BEGIN, ROLE, END = "]~!b[", "]~b]", "[e~["
THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<minimax:tool_call>", "</minimax:tool_call>"
SPECIAL_TOKENS = (BEGIN, ROLE, END, "]!d~[", "]!p~[", THINK, END_THINK, CALL, END_CALL)

IDENTITY = "You are MiniMax-M2, a helpful AI assistant built by MiniMax. Knowledge cutoff: 2025-06."

TOOLS_HEAD = (
    "\n\n# Tools\nYou may call one or more tools to assist with the user query.\n"
    "Here are the tools available in JSONSchema format:\n\n<tools>\n"
)
TOOLS_USE = "</tools>\n\nWhen making tool calls, use XML format to invoke tools and pass parameters:\n\n"
TOOLS_EXAMPLE = (
    '\n<invoke name="tool-name-1">\n<parameter name="param-key-1">param-value-1</parameter>\n'
    '<parameter name="param-key-2">param-value-2</parameter>\n...\n</invoke>\n'
)

INVOKE = re.compile(r'\s*<invoke name="([^"]*)">(.*?)</invoke>(?=\s*(?:<invoke name="|\Z))', re.DOTALL)
PARAMETER = re.compile(r'\s*<parameter name="([^"]*)">(.*?)</parameter>(?=\s*(?:<parameter name="|\Z))', re.DOTALL)


@dataclass(frozen=True)
class MiniMaxM2:
    """MiniMax-M2's wire format.

    Attributes:
      identity: system text of a conversation that brings none (M2.1 and later name themselves differently).
      keep_all_thinking: keep the reasoning of every assistant turn. The released template drops it from turns
        before the last user message; the vendor advises to retain it in long agent sessions.
    """

    identity: str = IDENTITY
    keep_all_thinking: bool = False

    special_tokens = SPECIAL_TOKENS
    spelled_tokens = ()
    stop_tokens = (END,)
    call_mark = CALL

    def training(self, messages: Sequence[Message], tools: Sequence[Message], thinking: bool) -> Iterator[Segment]:
        """The template's rendering, but each answer that is trained has a block; see ``Format.training``."""
        check_roles(messages)
        return self.segments(messages, tools, thinking, learnt=self.learnt(messages, thinking))

    def learnt(self, messages: Sequence[Message], thinking: bool) -> set[int]:
        """The answers after the last user message, or all; see ``Format.learnt``."""
        answers = {i for i, message in enumerate(messages) if message["role"] == "assistant"}
        return answers if self.keep_all_thinking else {i for i in answers if i > last_of("user", messages)}

    def segments(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message],
        thinking: bool,
        add_generation_prompt: bool = False,
        learnt: Collection[int] | None = None,
    ) -> Iterator[Segment]:
        """See ``Chat.render``; those to be ``learnt``, if told, as their prompt opens them."""
        check_roles(messages)
        system = messages[0] if messages and messages[0]["role"] == "system" else {}
        last_user = last_of("user", messages)
        yield Segment(BEGIN, special=True)
        yield from role("system")
        yield from self.system(system, tools)
        yield from end_of_message()
        for index, message in enumerate(messages):
            if message["role"] == "user":
                yield from role("user")
                yield Segment(visible_text(message, index))
                yield from end_of_message()
            elif message["role"] == "assistant":
                yield from role("ai")
                current = index > last_user
                if learnt is None or index in learnt:
                    yield from self.answer(message, index, thinking, current, opened=learnt is not None)
                else:
                    yield from untrained(self.answer(message, index, thinking, current))
            elif message["role"] == "tool":
                previous, following = messages[index - 1], messages[index + 1 : index + 2]
                if previous["role"] != "tool":
                    yield from role("tool", end="")
                yield from responses(message, index)
                if not following or following[0]["role"] != "tool":
                    yield from end_of_message()
        if add_generation_prompt:
            yield from role("ai")
            yield from open_thinking() if thinking else no_thinking()

    def system(self, message: Message, tools: Sequence[Message]) -> Iterator[Segment]:
        """Identity, date, place, and the tools with an example of their use."""
        yield Segment(visible_text(message, 0) or self.identity)
        if date := message.get("current_date"):
            yield Segment(f"\nCurrent date: {date}")
        if location := message.get("current_location"):
            yield Segment(f"\nCurrent location: {location}")
        if tools:
            yield Segment(TOOLS_HEAD)
            for tool in tools:
                yield Segment(f"<tool>{to_json(function_of(tool))}</tool>\n")
            yield Segment(TOOLS_USE)
            yield Segment(CALL, special=True)
            yield Segment(TOOLS_EXAMPLE)
            yield Segment(END_CALL, special=True)

    def answer(
        self, message: Message, index: int, thinking: bool, current: bool, opened: bool = False
    ) -> Iterator[Segment]:
        """An assistant turn after its role: reasoning where it is kept, or its block if that was ``opened`` anyhow,
        content, calls, end."""
        reasoning, content = reasoning_and_content(message, index)
        if not thinking and (current or opened):
            yield from no_thinking()
        elif thinking and (opened or (reasoning and (current or self.keep_all_thinking))):
            yield from open_thinking()
            yield Segment(f"{reasoning}\n", trained=True)
            yield Segment(END_THINK, special=True, trained=True)
            yield Segment("\n\n", trained=True)
        yield Segment(content, trained=True)
        if calls := calls_of(message, index):
            yield Segment("\n", trained=True)
            yield Segment(CALL, special=True, trained=True)
            yield Segment("\n" + "".join(invocation(call.name, call.values(index)) for call in calls), trained=True)
            yield Segment(END_CALL, special=True, trained=True)
        yield from end_of_message(trained=True)

    def parse(self, text: str, tools: Sequence[Message], thinking: bool) -> dict[str, Any]:
        """The message that an answer stands for; see ``Chat.parse``."""
        text, reasoning, errors = without_stop(text, self.stop_tokens, newline=True), "", []
        if thinking:
            reasoning, closed, text = re.sub(rf"\A{THINK}\n?", "", text).partition(END_THINK)
            reasoning, text = reasoning.removesuffix("\n"), re.sub(r"\A\n{1,2}", "", text)
            errors = [] if closed else [f"the reasoning has no {END_THINK}"]

        def read(match: re.Match[str]) -> Read:
            return read_tagged(match[1], PARAMETER, match[2], tools, "<parameter>")

        content, calls = read_block(text, CALL, END_CALL, lambda block: read_each(INVOKE, block, read, "<invoke>"))
        content = content.removesuffix("\n") if calls.items else content
        return assistant_message(content, reasoning, calls.items, [*errors, *calls.errors])


def role(name: str, end: str = "\n") -> Iterator[Segment]:
    yield Segment(ROLE, special=True)
    yield Segment(name + end)


def end_of_message(trained: bool = False) -> Iterator[Segment]:
    yield Segment(END, special=True, trained=trained)
    yield Segment("\n")


def open_thinking() -> Iterator[Segment]:
    yield Segment(THINK, special=True)
    yield Segment("\n")


def no_thinking() -> Iterator[Segment]:
    yield from open_thinking()
    yield Segment("\n")
    yield Segment(END_THINK, special=True)
    yield Segment("\n\n")


def responses(message: Message, index: int) -> Iterator[Segment]:
    """Tool results: a string closes its tag at once, the parts of a list each on a new line (as the template does)."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        yield Segment(f"\n<response>{content or ''}</response>")
    else:
        for part in content:
            yield Segment(f"\n<response>{part_text(part, index)}\n</response>")


def invocation(name: str, arguments: Mapping[str, Any]) -> str:
    """One call on the wire: strings as they are, every other value as JSON."""
    parameters = "".join(
        f'<parameter name="{key}">{plain_or_json(value)}</parameter>\n' for key, value in arguments.items()
    )
    return f'<invoke name="{name}">\n{parameters}</invoke>\n'
