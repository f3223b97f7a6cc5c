"""Tool calls that are written as text: ``f(k='v')``, ``Call f(2+2)=4.``, ``<tool_call>{"name": ...}</tool_call>``.

A call that cannot be read stays text, and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from posttrain_jax.chat.messages import function_of
from posttrain_jax.chat.reading import tool_call
from posttrain_jax.chat.schema import TYPES, from_json, has_type

POSITIONAL = "input"  # the argument that is given without a name

NAME = re.compile(r"\s*([A-Za-z_][\w.\-]*)\s*\(")
OPENING = re.compile(r"<tool_call>|\b[Cc]all(?:ing)?:?\s+(?=[A-Za-z_][\w.\-]*\s*\()")
RESULT = re.compile(
    r"\s*(?:=>?|->|→)\s*|[.;,]?\s*(?:tool )?(?:response|result|feedback|observation|output|returns?)\s*:\s*", re.I
)
TAGGED_RESULT = re.compile(r"\s*<tool_response>(.*?)</tool_response>", re.DOTALL)
AFTER_RESULT = re.compile(r"(?:(?<=[.!?])|\n)\s*(?=(?:final )?answer\s*:|final\s*:|<think>)", re.I)
KEYWORD = re.compile(r"([A-Za-z_]\w*)\s*[=:](?!=)\s*")
QUOTED = re.compile(r"""(['"])((?:\\.|(?!\1|\\).)*)\1""", re.DOTALL)
ESCAPE = re.compile(r"\\(.)", re.DOTALL)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
CONSTANTS = {"None": None, "True": True, "False": False}
THOUGHT = re.compile(r"\s*(?:think(?:ing)?|thought|reasoning)\s*:\s*", re.I)


class Written(NamedTuple):
    """A call in a text: what is called with what, and where its text ends."""

    call: dict[str, Any]
    end: int


def read_call(text: str) -> dict[str, Any]:
    """The call that a text is, in OpenAI's form: ``f(args)``, a JSON object, either in ``<tool_call>`` tags.

    Raises:
      ValueError: the text is no call.
    """
    inner = text.strip().removeprefix("<tool_call>").removesuffix("</tool_call>").strip()
    if inner.startswith("{"):
        return json_call(from_json(inner))
    inner = OPENING.sub("", inner, count=1) if OPENING.match(inner) else inner
    written = function_at(inner, 0)
    if inner[written.end :].strip(" .;"):
        raise ValueError(f"{inner[written.end :]!r:.80} stands behind the call")
    return written.call


def json_call(value: Any) -> dict[str, Any]:
    """A call given as an object with ``name`` and ``arguments`` (or ``parameters``), bare or below ``function``.

    Raises:
      ValueError: no name, or arguments that are no object.
    """
    function = function_of(value)
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = from_json(arguments)
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments of {function['name']!r} are {arguments!r:.80}; expected an object")
    return tool_call(function["name"], arguments)


def function_at(text: str, start: int) -> Written:
    """The call ``name(arguments)`` that begins at ``start``.

    Raises:
      ValueError: none does, or its parenthesis is never closed.
    """
    if (named := NAME.match(text, start)) is None:
        raise ValueError(f"{text[start:]!r:.80} is no call; expected name(key='value')")
    end = closing(text, named.end())
    return Written(tool_call(named[1], arguments(text[named.end() : end - 1])), end)


def closing(text: str, start: int) -> int:
    """Where the parenthesis that was opened before ``start`` is closed, quotes respected."""
    depth, quote, index = 1, "", start
    while index < len(text):
        character = text[index]
        if quote:
            index += character == "\\"
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
            if not depth:
                return index + 1
        index += 1
    raise ValueError(f"the call {text[:start]!r:.80} has no closing parenthesis")


def arguments(text: str) -> dict[str, Any]:
    """Arguments by name: numbers, quoted texts, JSON and Python's constants as values, all else as its text.

    What has no name is called ``input``, then ``input_2`` and so on; where a name is given twice, the whole text is one
    ``input``.
    """
    values: dict[str, Any] = {}
    unnamed = 0
    for part in filter(None, map(str.strip, split(text))):
        if named := KEYWORD.match(part):
            name, given = named[1], part[named.end() :]
        else:
            unnamed += 1
            name, given = POSITIONAL if unnamed == 1 else f"{POSITIONAL}_{unnamed}", part
        if name in values:
            return {POSITIONAL: text.strip()}
        values[name] = value(given.strip())
    return values


def split(text: str) -> list[str]:
    """The text between commas that stand in no quotes and no brackets."""
    parts, depth, quote, index, start = [], 0, "", 0, 0
    while index < len(text):
        character = text[index]
        if quote:
            index += character == "\\"
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "," and not depth:
            parts.append(text[start:index])
            start = index + 1
        else:
            depth += (character in "([{") - (character in ")]}")
        index += 1
    return [*parts, text[start:]]


def value(text: str) -> Any:
    """The value of an argument's text."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if quoted := QUOTED.fullmatch(text):
        return ESCAPE.sub(lambda escape: ESCAPES.get(escape[1], escape[0]), quoted[2])
    try:
        return from_json(text)
    except ValueError:  # an expression: its text says what it is
        return text


def turns(text: str, notes: list[str]) -> list[dict[str, Any]]:
    """A trajectory's text as messages: what the assistant says, its calls, and what came back.

    Args:
      text: ``Call f(a=1). Response: b. Answer: c``, with ``=`` or ``<tool_response>`` for the response; before a
        call, text that begins with ``Think:`` is the reasoning that leads to it.
      notes: takes a line for each call that could not be read or has no result.
    """
    messages: list[dict[str, Any]] = []
    said, position = "", 0
    while opened := OPENING.search(text, position):
        said += text[position : opened.start()]
        try:
            written = tagged_at(text, opened.end()) if opened[0] == "<tool_call>" else function_at(text, opened.end())
        except ValueError as error:
            notes.append(f"a tool call was left as text: {error}")
            said += opened[0]
            position = opened.end()
            continue
        result, position = result_at(text, written.end)
        waiting = messages and messages[-1].get("tool_calls") and not said.strip(" .;,\n")
        if waiting:  # calls in a row are made at once
            messages[-1]["tool_calls"].append(written.call)
        else:
            messages.append({**spoken(said), "tool_calls": [written.call]})
        said = ""
        if result is not None:
            messages.append({"role": "tool", "content": result})
    said += text[position:]
    if said.strip(" .;") or not messages:
        if messages and messages[-1].get("tool_calls"):
            notes.append("text follows a tool call that has no result")
        messages.append(spoken(said) if messages else {"role": "assistant", "content": said})
    return messages


def tagged_at(text: str, start: int) -> Written:
    """The call between ``<tool_call>`` tags, of which the first ends at ``start``."""
    end = text.find("</tool_call>", start)
    if end < 0:
        raise ValueError("<tool_call> has no </tool_call>")
    return Written(read_call(text[start:end]), end + len("</tool_call>"))


def result_at(text: str, start: int) -> tuple[str | None, int]:
    """What came back from the call that ends at ``start``, if the text says it, and where that ends."""
    if tagged := TAGGED_RESULT.match(text, start):
        return tagged[1].strip(), tagged.end()
    if (said := RESULT.match(text, start)) is None:
        return None, start
    ends = [found.start() for pattern in (OPENING, AFTER_RESULT) if (found := pattern.search(text, said.end()))]
    end = min(ends, default=len(text))
    result = text[said.end() : end].strip()
    return (result if ":" in said[0] else result.removesuffix(".")), end


def spoken(text: str) -> dict[str, Any]:
    """An assistant message of a trajectory: its thought, if it says that it is one, else its content."""
    text = text.strip()
    if thought := THOUGHT.match(text):
        return {"role": "assistant", "content": "", "reasoning_content": text[thought.end() :]}
    return {"role": "assistant", "content": text}


def declared(tools: Sequence[Any], messages: Sequence[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """The tools as functions with schemas: those given by name alone get the parameters that their calls show.

    Args:
      tools: names, or functions in OpenAI's form.
      messages: the conversation; a tool that it calls and nobody lists is added, and ``notes`` says so.

    Raises:
      ValueError: a tool that is neither a name nor a function.
    """
    shown: dict[str, dict[str, Any]] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = function_of(call)
            seen = shown.setdefault(function["name"], {})
            for key, given in function["arguments"].items():
                seen.setdefault(key, {"type": next(name for name in reversed(TYPES) if has_type(given, name))})
    functions = [function_schema(tool, shown) if isinstance(tool, str) else tool for tool in tools]
    known = {function_of(function)["name"] for function in functions}
    for name in shown:
        if name not in known:
            functions.append(function_schema(name, shown))
            if tools:
                notes.append(f"{name!r} is called but not listed in tools; it was added")
    return functions


def function_schema(name: str, shown: dict[str, dict[str, Any]]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": shown.get(name, {})}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}
