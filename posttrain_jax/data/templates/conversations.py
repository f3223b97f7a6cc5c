"""Conversations in the formats that others write: OpenAI, ShareGPT, Alpaca, GSM8K; and our own canonical records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain_jax.chat.messages import function_of
from posttrain_jax.data import records
from posttrain_jax.data.records import Message, Record, checked, nearest
from posttrain_jax.data.templates import pseudo_calls
from posttrain_jax.data.templates.template import ANNOTATIONS, Fields, Template
from posttrain_jax.data.templates.translation import answer, mode, text, tools

ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}


def canonical(fields: Fields, notes: list[str]) -> Record:
    """A record that was written by `Record.to_dict`."""
    return records.from_dict(fields)


def openai(fields: Fields, notes: list[str]) -> Record:
    """``messages``, and ``tools`` where there are any."""
    messages = fields["messages"]
    if isinstance(messages, list):
        messages = [explicit(message) for message in messages]
    return conversation("openai", "messages", messages, fields)


def explicit(message: Any) -> Any:
    """The message; an assistant's that thinks in its text, with what comes first of that in a field of its own: some
    formats would look for it in the text and drop what stands between, others would leave it there."""
    said = message.get("content") if isinstance(message, dict) and message.get("role") == "assistant" else None
    if not isinstance(said, str) or message.get("reasoning_content") is not None or "</think>" not in said:
        return message
    return {**message, **answer(said, None)}


def sharegpt(fields: Fields, notes: list[str]) -> Record:
    """``conversations`` of ``from`` and ``value``; a function call is JSON or ``f(k='v')``."""
    given = fields["conversations"]
    if not isinstance(given, list) or not all(isinstance(turn, Mapping) for turn in given):
        raise ValueError("field 'conversations' is not a list of objects with from and value")
    messages = [turn_of(turn, index) for index, turn in enumerate(given)]
    if "system" in fields:
        messages = [{"role": "system", "content": text("system", fields["system"])}, *messages]
    return conversation("sharegpt", "conversations", messages, fields)


def turn_of(turn: Mapping[str, Any], index: int) -> Message:
    """One turn as a message."""
    who, said = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    role = ROLES.get(who.lower()) if isinstance(who, str) else None
    if role is None:
        near = nearest(str(who).lower(), ROLES)
        raise ValueError(f"turn {index} is from {who!r:.80}; expected human, gpt, system or tool{near}")
    said = text(f"value of turn {index}", said)
    if role == "assistant":
        return answer(said, None)
    if role != "call":
        return {"role": role, "content": said}
    try:
        return {"role": "assistant", "content": "", "tool_calls": [pseudo_calls.read_call(said)]}
    except ValueError as error:
        raise ValueError(f"turn {index} is no function call: {error}") from error


def conversation(name: str, field: str, messages: Any, fields: Fields) -> Record:
    """A whole conversation as a record."""
    records.check_messages(field, messages)
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"field {field!r} has no assistant message, so nothing to learn from")
    given = tools("tools", fields["tools"]) if fields.get("tools") else []
    functions = [pseudo_calls.function_schema(tool, {}) if isinstance(tool, str) else tool for tool in given]
    for function in functions:
        function_of(function)
    kept = {name: fields[name] for name in ANNOTATIONS if name in fields}
    thinking = mode(fields["mode"]) if "mode" in fields else True
    stage = "agentic" if functions else "sft"
    return checked(Record(messages, functions, thinking, stage, annotations=kept, template=name))


def gsm8k(fields: Fields, notes: list[str]) -> Record:
    """``question`` and ``answer``, where text before a ``####`` is the reasoning."""
    reasoning, _, said = text("answer", fields["answer"]).rpartition("####")
    messages = [
        {"role": "user", "content": text("question", fields["question"])},
        {"role": "assistant", "reasoning_content": reasoning.strip(), "content": said.strip()},
    ]
    return conversation("gsm8k", "question", messages, fields)


def alpaca(fields: Fields, notes: list[str]) -> Record:
    """``instruction``, its ``input`` where it has one, and ``output``; ``history`` are earlier pairs."""
    asked = text("instruction", fields["instruction"])
    context = text("input", fields["input"]) if fields.get("input") is not None else ""
    messages: list[Message] = []
    if "system" in fields:
        messages.append({"role": "system", "content": text("system", fields["system"])})
    history = fields.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError("field 'history' is not a list of pairs of a prompt and its response")
    for before, said in history:
        messages += [{"role": "user", "content": text("history", before)}, answer(text("history", said), None)]
    messages.append({"role": "user", "content": f"{asked}\n\n{context}" if context else asked})
    messages.append(answer(text("output", fields["output"]), None))
    return conversation("alpaca", "instruction", messages, fields)


MODE = {"mode": "mode"}
KEPT = dict.fromkeys(records.FIELDS, "record")

TEMPLATES = (
    Template("record", "what `Record.to_dict` writes", {records.MARK: "record"}, KEPT, translate=canonical),
    Template(
        "openai",
        "messages with roles, tool calls",
        {"messages": "messages"},
        {"tools": "tools", **MODE},
        translate=openai,
    ),
    Template(
        "sharegpt",
        "turns from human and gpt",
        {"conversations": "messages"},
        {"tools": "tools", "system": "system", **MODE},
        translate=sharegpt,
    ),
    Template("gsm8k", "a question and its worked answer", {"question": "prompt", "answer": "answer"}, translate=gsm8k),
    Template(
        "alpaca",
        "an instruction, its input, an output",
        {"instruction": "prompt", "output": "answer"},
        {"input": "context", "history": "messages", "system": "system", **MODE},
        translate=alpaca,
    ),
)
