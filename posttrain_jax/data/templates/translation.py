"""A record from its parts: prompt, answer, reasoning, tools, call, result, reward, pair, mode."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from posttrain_jax.data.records import Message, Record, checked, nearest, type_name
from posttrain_jax.data.templates import pseudo_calls
from posttrain_jax.data.templates.reward_words import reward
from posttrain_jax.data.templates.template import Template

Parts = Mapping[str, tuple[str, Any]]  # for each part its field's name and value

MODES = {
    **dict.fromkeys(("thinking", "think"), True),
    **dict.fromkeys(("non-thinking", "nonthinking", "non_thinking", "nothink", "no_think", "direct"), False),
}
LEADING_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
CONCLUSION = re.compile(r"\b(?:conclusion|(?:final )?answer|therefore|结论|答案)\s*[:：]", re.I)
TEXTS = ("prompt", "answer", "reasoning", "chosen", "rejected", "result", "system", "context")


def record_of(template: Template, parts: Parts, annotations: dict[str, Any], notes: list[str]) -> Record:
    """The record that a template's parts stand for. What is missing has a default, and ``notes`` says which.

    Raises:
      ValueError: a part of the wrong type, or one that cannot be read.
    """
    texts = {name: text(*parts[name]) for name in TEXTS if name in parts}
    thinking = mode(parts["mode"][1]) if "mode" in parts else template.variant != "instruct"
    messages = question(texts)
    pair: dict[str, list[Message]] = {}
    if "chosen" in parts:
        pair = {name: [answer(texts[name], None)] for name in ("chosen", "rejected")}
    elif "call" in parts:
        messages += called(parts["call"], texts, notes)
    elif "answer" in parts or "reasoning" in parts:
        if "answer" not in parts:
            notes.append(f"no answer beside {parts['reasoning'][0]!r}: the reasoning is trained, then an empty answer")
        messages += answers(template, texts, "tools" in parts, "mode" in parts and thinking, notes)
    else:
        notes.append("a prompt with no answer: RL can use it, SFT cannot")
    listed = tools(*parts["tools"]) if "tools" in parts else []
    value = None
    if "reward" in parts:
        name, given = parts["reward"]
        value = reward(given)
        annotations |= {} if isinstance(given, int | float) and not isinstance(given, bool) else {name: given}
    elif "reward" in template.fields.values():
        notes.append("no verdict on the trajectory, so no reward")
    stage = template.stage
    if not pair and not any(message["role"] == "assistant" for message in messages):
        stage = "rl"
    record = Record(
        messages=messages,
        tools=pseudo_calls.declared(listed, messages, notes),
        thinking=thinking,
        stage=stage,
        family=template.family,
        variant=template.variant,
        reward=value,
        annotations=annotations,
        template=template.name,
        **pair,
    )
    return checked(record)


def question(texts: Mapping[str, str]) -> list[Message]:
    """System message and prompt, the prompt's context before it; a trajectory may have neither."""
    messages: list[Message] = [{"role": "system", "content": texts["system"]}] if "system" in texts else []
    if asked := [texts[name] for name in ("context", "prompt") if name in texts]:
        messages.append({"role": "user", "content": "\n\n".join(asked)})
    return messages


def answer(said: str, reasoning: str | None) -> Message:
    """An assistant message. A ``<think>`` block that the text begins with is its reasoning; a later one stays where it
    is: a family's format has one block of reasoning a message, and text is not to be lost or moved."""
    if reasoning is None and (thought := LEADING_THOUGHT.match(said)):
        reasoning, said = thought[1].strip(), said[thought.end() :]
    if reasoning is None and "</think>" in said:
        reasoning = ""  # else a format would look for it in the text
    return {"role": "assistant", "content": said} | ({} if reasoning is None else {"reasoning_content": reasoning})


def answers(
    template: Template, texts: Mapping[str, str], with_tools: bool, thinking: bool, notes: list[str]
) -> list[Message]:
    """The assistant's side of a conversation: one message, or the turns of a trajectory that calls tools."""
    first = answer(texts.get("answer", ""), texts.get("reasoning"))
    if thinking and "reasoning_content" not in first:
        first = concluded(first, notes)
    if not (template.calls or with_tools):
        return [first]
    messages = pseudo_calls.turns(first["content"], notes)
    if not any(message.get("tool_calls") for message in messages):
        return [first]
    messages = [said_or_called(message) for message in messages]
    if thought := first.get("reasoning_content"):
        own = messages[0].get("reasoning_content")
        messages[0] = {**messages[0], "reasoning_content": f"{thought}\n{own}" if own else thought}
    return messages


def said_or_called(message: Message) -> Message:
    """A message of a trajectory, the ``<think>`` block that it begins with as its reasoning."""
    if message["role"] != "assistant":
        return message
    return {**message, **answer(message["content"], message.get("reasoning_content"))}


def concluded(message: Message, notes: list[str]) -> Message:
    """The answer of a thinking mode without a ``<think>`` block: what stands before its conclusion is the reasoning."""
    said = message["content"]
    if (conclusion := CONCLUSION.search(said)) and said[: conclusion.start()].strip():
        return {
            **message,
            "content": said[conclusion.start() :],
            "reasoning_content": said[: conclusion.start()].strip(),
        }
    notes.append("mode is thinking, but the answer has neither <think> nor a conclusion: its reasoning is empty")
    return message


def called(part: tuple[str, Any], texts: Mapping[str, str], notes: list[str]) -> list[Message]:
    """A call, its result, and the answer that makes use of it."""
    name, given = part
    try:
        call = pseudo_calls.read_call(given) if isinstance(given, str) else pseudo_calls.json_call(given)
    except ValueError as error:
        raise ValueError(f"field {name!r} is no tool call: {error}") from error
    said = answer(texts["answer"], None) if "answer" in texts else None
    thought = texts.get("reasoning", (said or {}).get("reasoning_content"))
    messages: list[Message] = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    if thought:
        messages[0]["reasoning_content"] = thought
    if said and "result" not in texts:
        notes.append("no tool_response: what the tool returned is taken to be the answer")
    if "result" in texts or said:
        messages.append({"role": "tool", "content": texts.get("result", said["content"] if said else "")})
    return [*messages, {"role": "assistant", "content": said["content"]}] if said else messages


def text(name: str, value: Any) -> str:
    """A field's text; a list of texts is their lines.

    Raises:
      ValueError: anything else.
    """
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is {type_name(value)}; expected text")
    return value


def tools(name: str, value: Any) -> list[Any]:
    """A field's tools: a list, or one that is given as JSON text or as names between commas."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            from posttrain_jax.chat.schema import from_json

            value = from_json(value)
        else:
            value = [each.strip() for each in value.split(",") if each.strip()]
    if not isinstance(value, list) or not all(isinstance(each, str | dict) and each for each in value):
        raise ValueError(f"field {name!r} is {value!r:.80}; expected a list of names or functions")
    return value


def mode(value: Any) -> bool:
    """Whether a mode is one of thinking.

    Raises:
      ValueError: an unknown mode; names the nearest.
    """
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.strip().lower() not in MODES:
        near = nearest(str(value).lower(), ("thinking", "non-thinking"))
        raise ValueError(f"mode {value!r:.80} is neither thinking nor non-thinking{near}")
    return MODES[value.strip().lower()]
