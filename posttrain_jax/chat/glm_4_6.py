"""The chat format of GLM-4.5 and GLM-4.6 (the released template of zai-org/GLM-4.6).

A conversation reads ``[gMASK]<sop><|user|>\\n…<|assistant|>\\n<think>…</think>\\n…<|user|>…``. No token ends a turn:
the next role begins where the model stops, so that role's token is the last thing that an answer has to produce,
``<|user|>`` after words and ``<|observation|>`` after tool calls. A finished conversation is trained with it.

Reasoning is kept for the answers after the last user message; earlier ones show an empty block, and if they had thought
something, they are not trained in that form (``Chat.beginnings``). ``thinking=False`` ends
every user message with ``/nothink`` and gives the model a closed, empty block, which is not trained.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain_jax.chat.format import Message, Segment, untrained
from posttrain_jax.chat.messages import (
    calls_of,
    check_roles,
    last_of,
    part_text,
    plain_or_json,
    reasoning_and_content,
    to_json,
    visible_text,
)
from posttrain_jax.chat.reading import Read, assistant_message, read_each, read_tagged, without_stop

BEGIN = ("[gMASK]", "<sop>")
END_OF_TEXT, SYSTEM, USER = "<|endoftext|>", "<|system|>", "<|user|>"
ASSISTANT, OBSERVATION = "<|assistant|>", "<|observation|>"
THINK, END_THINK, NO_THINKING = "<think>", "</think>", "/nothink"
CALL, END_CALL = "<tool_call>", "</tool_call>"
RESPONSE, END_RESPONSE = "<tool_response>", "</tool_response>"
KEY, END_KEY, VALUE, END_VALUE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"

TOOLS_HEAD = (
    "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
TOOLS_USE = (
    "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
)

ELEMENT = re.compile(
    rf"\s*{CALL}([^<\n]+)(\s*(?:{KEY}.*?)?){END_CALL}(?=\s*(?:{CALL}|\Z))",
    re.DOTALL,
)
ARGUMENT = re.compile(
    rf"\s*{KEY}((?:(?!{KEY}).)*?){END_KEY}\s*{VALUE}(.*?){END_VALUE}(?=\s*(?:{KEY}|\Z))",
    re.DOTALL,
)


@dataclass(frozen=True)
class GLM46:
    """GLM-4.6's wire format.

    Attributes:
      keep_all_thinking: keep the reasoning of every answer, for training on interleaved thinking.
    """

    keep_all_thinking: bool = False

    special_tokens = (
        *(END_OF_TEXT, *BEGIN, SYSTEM, USER, ASSISTANT, OBSERVATION, THINK, END_THINK, NO_THINKING),
        *(CALL, END_CALL, RESPONSE, END_RESPONSE, KEY, END_KEY, VALUE, END_VALUE),
    )
    spelled_tokens = (NO_THINKING,)
    stop_tokens = (END_OF_TEXT, USER, OBSERVATION)
    call_mark = CALL

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
        last_user = last_of("user", messages)
        yield from (Segment(name, special=True) for name in BEGIN)
        if tools:
            yield from declaration(tools)
        for index, message in enumerate(messages):
            previous = messages[index - 1]["role"] if index else ""
            # then this role's token is how an answer stopped
            answered = previous == "assistant" and (learnt is None or index - 1 in learnt)
            if message["role"] == "system":
                yield Segment(SYSTEM, special=True, trained=answered)
                yield Segment("\n" + visible_text(message, index))
            elif message["role"] == "user":
                yield Segment(USER, special=True, trained=answered)
                yield from self.question(visible_text(message, index), thinking)
            elif message["role"] == "assistant":
                yield Segment(ASSISTANT, special=True)
                said = self.answer(message, index, thinking, running=index > last_user)
                yield from said if learnt is None or index in learnt else untrained(said)
            else:
                yield from self.responses(message, index, previous, answered)
        if add_generation_prompt:
            yield Segment(ASSISTANT, special=True)
            if not thinking:
                yield from think("", trained=False)

    def training(self, messages: Sequence[Message], tools: Sequence[Message], thinking: bool) -> Iterator[Segment]:
        """The conversation, and the role's token with which its last answer ends."""
        check_roles(messages, system_anywhere=True)
        last = messages[-1] if messages else {}
        answered = last.get("role") == "assistant"
        if answered and not thinking:
            _, content = reasoning_and_content(last, len(messages) - 1)
            messages = [*messages[:-1], {**last, "content": content, "reasoning_content": ""}]
        yield from self.segments(messages, tools, thinking, learnt=self.learnt(messages, thinking))
        if answered:
            yield Segment(OBSERVATION if last.get("tool_calls") else USER, special=True, trained=True)

    def learnt(self, messages: Sequence[Message], thinking: bool) -> set[int]:
        """The answers whose exchange up to them shows what was thought; see ``Format.learnt``."""
        last_user, last, found, whole = last_of("user", messages), len(messages) - 1, set(), True
        for index, message in enumerate(messages):
            if message["role"] == "user":
                whole = True  # an exchange begins
            elif message["role"] == "assistant":
                kept = index > last_user or self.keep_all_thinking
                thought = bool(reasoning_and_content(message, index)[0].strip())
                whole = whole and (kept == thinking or not thought)
                found |= {index} if whole or index == last else set()
        return found

    def question(self, text: str, thinking: bool) -> Iterator[Segment]:
        """A user's text, which ends with the switch when the model is not to think."""
        yield Segment("\n" + (text if thinking else text.removesuffix(NO_THINKING)))
        if not thinking:
            yield Segment(NO_THINKING, special=True)

    def answer(self, message: Message, index: int, thinking: bool, running: bool) -> Iterator[Segment]:
        """An assistant turn after its role: reasoning or an empty block, content, calls."""
        reasoning, content = (text.strip() for text in reasoning_and_content(message, index))
        kept = running or self.keep_all_thinking
        yield from think(reasoning if kept else "", trained=thinking)
        if content:
            yield Segment("\n" + content, trained=True)
        for call in calls_of(message, index):
            yield Segment("\n", trained=True)
            yield Segment(CALL, special=True, trained=True)
            yield Segment(call.name + "\n", trained=True)
            for key, value in call.values(index).items():
                yield from tagged(KEY, key, END_KEY)
                yield from tagged(VALUE, plain_or_json(value), END_VALUE)
            yield Segment(END_CALL, special=True, trained=True)

    def responses(self, message: Message, index: int, previous: str, answered: bool) -> Iterator[Segment]:
        """A tool's results: a string joins the run of results before it, a list opens a run of its own."""
        content = message.get("content")
        parts = [content or ""] if content is None or isinstance(content, str) else content
        if parts is content or previous != "tool":
            yield Segment(OBSERVATION, special=True, trained=answered)
        for part in parts:
            yield Segment("\n")
            yield Segment(RESPONSE, special=True)
            yield Segment(f"\n{part_text(part, index)}\n")
            yield Segment(END_RESPONSE, special=True)

    def parse(self, text: str, tools: Sequence[Message], thinking: bool) -> dict[str, Any]:
        """The message that an answer stands for; see ``Chat.parse``."""
        text, reasoning, errors = without_stop(text, self.stop_tokens), "", []
        opened = re.match(rf"\n?{THINK}", text)
        if thinking and (opened or END_THINK in text.partition(CALL)[0]):
            reasoning, closed, text = text[opened.end() if opened else 0 :].partition(END_THINK)
            errors = [] if closed else [f"{THINK} has no {END_THINK}"]
        content, called, block = text.partition(CALL)
        if called:
            content = content.removesuffix("\n")

        def read(match: re.Match[str]) -> Read:
            return read_tagged(match[1].strip(), ARGUMENT, match[2], tools, KEY)

        calls = read_each(ELEMENT, called + block, read, "tool call")
        if calls.unread:
            errors += calls.errors
            content += ("\n" if content else "") + calls.unread.removeprefix("\n")
        else:
            errors += calls.errors
        return assistant_message(content.removeprefix("\n"), reasoning, calls.items, errors)


def declaration(tools: Sequence[Message]) -> Iterator[Segment]:
    """The turn that tells which tools there are and how one is called."""
    yield Segment(SYSTEM, special=True)
    yield Segment(TOOLS_HEAD + "".join(to_json(tool) + "\n" for tool in tools) + TOOLS_USE)
    yield Segment(CALL, special=True)
    yield Segment("{function-name}\n")
    for count in (1, 2):
        yield from tagged(KEY, f"{{arg-key-{count}}}", END_KEY, trained=False)
        yield from tagged(VALUE, f"{{arg-value-{count}}}", END_VALUE, trained=False)
    yield Segment("...\n")
    yield Segment(END_CALL, special=True)


def tagged(opening: str, text: str, closing: str, trained: bool = True) -> Iterator[Segment]:
    yield Segment(opening, special=True, trained=trained)
    yield Segment(text, trained=trained)
    yield Segment(closing, special=True, trained=trained)
    yield Segment("\n", trained=trained)


def think(reasoning: str, trained: bool) -> Iterator[Segment]:
    yield Segment("\n", trained=trained)
    yield Segment(THINK, special=True, trained=trained)
    yield Segment(reasoning, trained=trained)
    yield Segment(END_THINK, special=True, trained=trained)
