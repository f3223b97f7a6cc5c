"""The chat format of Kimi K2 (docs/tool_call_guidance.md of MoonshotAI/Kimi-K2, and its released templates).

A conversation reads ``<|im_user|>user<|im_middle|>…<|im_end|><|im_assistant|>assistant<|im_middle|>…<|im_end|>``, with
nothing between the messages. K2-Thinking writes ``<think>…</think>`` before each answer; K2-Instruct never thinks.

K2-Thinking keeps reasoning only while a tool loop runs: every answer up to the last one without tool calls shows an
empty block instead. A finished conversation therefore never shows the reasoning of its last answer, so what the model
has to learn is written as it comes about: the prompt, then ``<think>…</think>`` and the answer. An earlier answer that
had thought something is not trained with the empty block (``Chat.beginnings``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain_jax.chat.format import Message, Segment, untrained
from posttrain_jax.chat.messages import (
    ChatError,
    calls_of,
    check_roles,
    last_of,
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

END, MIDDLE = "<|im_end|>", "<|im_middle|>"
USER, ASSISTANT, SYSTEM = "<|im_user|>", "<|im_assistant|>", "<|im_system|>"
CALLS, END_CALLS = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, END_CALL = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
THINK, END_THINK = "<think>", "</think>"
IDENTITY = "You are Kimi, an AI assistant created by Moonshot AI."

ELEMENT = re.compile(
    rf"\s*{re.escape(CALL)}((?:(?!{re.escape(CALL)}).)*?){re.escape(ARGUMENTS)}"
    rf"((?:(?!{re.escape(CALL)}).)*?){re.escape(END_CALL)}",
    re.DOTALL,
)
CALL_ID = re.compile(r"(?:functions\.)?(.+):\d+", re.DOTALL)


@dataclass(frozen=True)
class KimiK2:
    """Kimi K2's wire format.

    Attributes:
      thinks: K2-Thinking, whose answers begin with a block of reasoning; False is K2-Instruct.
      identity: system text of a conversation that brings none.
      keep_all_thinking: keep the reasoning of every answer, for training on interleaved thinking.
      compact_tools: declare tools without spaces between their JSON, as some copies of the template do.
    """

    thinks: bool = True
    identity: str = IDENTITY
    keep_all_thinking: bool = False
    compact_tools: bool = False

    special_tokens = (
        *("[BOS]", "[EOS]", "[PAD]", END, USER, ASSISTANT, SYSTEM, MIDDLE),
        *(CALLS, END_CALLS, CALL, ARGUMENTS, END_CALL, THINK, END_THINK),
    )
    spelled_tokens = (THINK, END_THINK)  # tokens of their own from K2.5 on
    stop_tokens = (END,)
    call_mark = CALLS

    def segments(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message],
        thinking: bool,
        add_generation_prompt: bool = False,
        learnt: Collection[int] | None = None,
    ) -> Iterator[Segment]:
        """See ``Chat.render``; only what is ``learnt`` is trained, if that is told."""
        check_roles(messages, system_anywhere=True)
        settled = last_settled(messages)
        if tools:
            separators = (",", ":") if self.compact_tools else (", ", ": ")
            declared = json.dumps(list(tools), ensure_ascii=False, separators=separators)
            yield from message_of(SYSTEM, "tool_declare", declared)
        if not messages or messages[0]["role"] != "system":
            yield from message_of(SYSTEM, "system", self.identity)
        ids = call_ids(messages)
        for index, message in enumerate(messages):
            name = message.get("name") or message["role"]
            if message["role"] == "assistant":
                yield from header(ASSISTANT, name)
                said = self.answer(message, index, ids[index], thinking, running=index > settled)
                yield from said if learnt is None or index in learnt else untrained(said)
            elif message["role"] == "tool":
                (answered,) = ids[index]
                yield from message_of(SYSTEM, name, f"## Return of {answered}\n{visible_text(message, index)}")
            else:
                opening = USER if message["role"] == "user" else SYSTEM
                yield from message_of(opening, name, visible_text(message, index))
        if add_generation_prompt:
            yield from header(ASSISTANT, "assistant")
            if self.thinks and not thinking:
                yield from think("", trained=False)

    def training(self, messages: Sequence[Message], tools: Sequence[Message], thinking: bool) -> Iterator[Segment]:
        """The conversation, its last answer with the reasoning that leads to it."""
        check_roles(messages, system_anywhere=True)
        learnt = self.learnt(messages, thinking)
        *before, last = messages or [{}]
        if last.get("role") != "assistant":
            yield from self.segments(messages, tools, thinking, learnt=learnt)
            return
        index = len(before)
        yield from self.segments(before, tools, thinking, add_generation_prompt=True, learnt=learnt)
        if self.thinks and thinking:
            yield from think(reasoning_of(last, index) or "", trained=True)
        yield from self.answer(last, index, call_ids(messages)[index], thinking, running=None)

    def learnt(self, messages: Sequence[Message], thinking: bool) -> set[int]:
        """The answers whose tool loop up to them shows what was thought; see ``Format.learnt``."""
        last, found, whole = len(messages) - 1, set(), True
        settled = last_settled(messages[:last] if last_of("assistant", messages) == last else messages)
        everything = self.keep_all_thinking or not (self.thinks and thinking)
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                whole = whole and (everything or index > settled or not reasoning_of(message, index))
                found |= {index} if whole else set()
                whole = whole or not message.get("tool_calls")  # a loop ends
        return found

    def answer(
        self, message: Message, index: int, ids: list[str], thinking: bool, running: bool | None
    ) -> Iterator[Segment]:
        """An assistant turn after its header; reasoning is kept while ``running``, and left to the caller if None."""
        if self.thinks and running is not None:
            reasoning = reasoning_of(message, index) or ""
            kept = thinking and (running or self.keep_all_thinking)
            yield from think(reasoning if kept else "", trained=thinking)
        yield Segment(visible_text(message, index), trained=True)
        if calls := calls_of(message, index):
            yield Segment(CALLS, special=True, trained=True)
            for call, id in zip(calls, ids, strict=True):
                arguments = call.arguments if isinstance(call.arguments, str) else to_json(call.values(index))
                yield Segment(CALL, special=True, trained=True)
                yield Segment(id, trained=True)
                yield Segment(ARGUMENTS, special=True, trained=True)
                yield Segment(arguments, trained=True)
                yield Segment(END_CALL, special=True, trained=True)
            yield Segment(END_CALLS, special=True, trained=True)
        yield Segment(END, special=True, trained=True)

    def parse(self, text: str, tools: Sequence[Message], thinking: bool) -> dict[str, Any]:
        """The message that an answer stands for; see ``Chat.parse``."""
        text, reasoning, errors = without_stop(text, self.stop_tokens), "", []
        if self.thinks and thinking and (text.startswith(THINK) or END_THINK in text.partition(CALLS)[0]):
            reasoning, closed, text = text.removeprefix(THINK).partition(END_THINK)
            errors = [] if closed else [f"{THINK} has no {END_THINK}"]
        content, calls = read_block(
            text,
            CALLS,
            END_CALLS,
            lambda block: read_each(ELEMENT, block, lambda match: read_call(match, tools), "tool call"),
        )
        return assistant_message(content, reasoning, calls.items, [*errors, *calls.errors])


def last_settled(messages: Sequence[Message]) -> int:
    """Index of the last answer without calls of tools, up to which reasoning is not shown; -1 where there is none."""
    return last_of("assistant", [m if not m.get("tool_calls") else {"role": ""} for m in messages])


def header(opening: str, name: str) -> Iterator[Segment]:
    yield Segment(opening, special=True)
    yield Segment(name)
    yield Segment(MIDDLE, special=True)


def message_of(opening: str, name: str, text: str) -> Iterator[Segment]:
    yield from header(opening, name)
    yield Segment(text)
    yield Segment(END, special=True)


def think(reasoning: str, trained: bool) -> Iterator[Segment]:
    yield Segment(THINK, special=True, trained=trained)
    yield Segment(reasoning, trained=trained)
    yield Segment(END_THINK, special=True, trained=trained)


def call_ids(messages: Sequence[Message]) -> list[list[str]]:
    """For each message the ids of its calls, or the id of the call that a tool's result answers.

    Calls that bring no id are numbered over the whole conversation, ``functions.get_weather:0``; results that bring
    none answer the calls in their order.

    Raises:
      ChatError: more results than calls.
    """
    ids: list[list[str]] = []
    waiting: list[str] = []
    count = 0
    for index, message in enumerate(messages):
        written = []
        if message["role"] == "assistant":
            for call in calls_of(message, index):
                written.append(call.id or f"functions.{call.name}:{count}")
                count += 1
            waiting += written
        elif message["role"] == "tool":
            answered = message.get("tool_call_id") or (waiting[0] if waiting else None)
            if answered is None:
                raise ChatError(f"message {index} is a tool result without tool_call_id, and no call waits for one")
            waiting = [id for id in waiting if id != answered]
            written = [answered]
        ids.append(written)
    return ids


def read_call(match: re.Match[str], tools: Sequence[Message]) -> Read:
    """One call between its markers: ``functions.NAME:INDEX`` and JSON; a bare index names the only tool there is."""
    id, arguments = match[1].strip(), match[2].strip()
    if named := CALL_ID.fullmatch(id):
        name = named[1]
    elif id.isdecimal() and len(tools) == 1:
        name = tools[0].get("function", tools[0])["name"]
    else:
        raise Unreadable(f"tool call with the id {id!r:.80}; expected functions.NAME:INDEX")
    try:
        values = from_json(arguments)
    except ValueError as error:
        raise Unreadable(f"arguments of {name!r} are not JSON: {error}") from error
    if not isinstance(values, dict):
        raise Unreadable(f"arguments of {name!r} are {arguments!r:.80}; expected an object")
    return Read([tool_call(name, values, id)], "", mismatches(values, parameter_schemas(tools, name), name))
