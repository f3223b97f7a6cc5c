"""A world seen otherwise: other tools, words, prompts and results, under which its rules stay what they are.

The five axes are those that MiniMax perturbs for generalisation: tools, system prompt, user prompt, environment, tool
responses. A variant is data; what it does to texts, calls and declarations is a function with an inverse.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_jax.environments.tools.tool import Tool
from posttrain_jax.synthesis.personas import PERSONAS, Persona

BUSY = ("busy, try again", "temporary failure, please retry", "rate limit reached, repeat the call")
LOST = ("connection lost before the result came", "timeout, no result")
ENVELOPES = ("plain", "json", "tagged", "status")


@dataclasses.dataclass(frozen=True)
class Dress:
    """A tool as it is declared: its name, its description, the names of its arguments."""

    name: str
    description: str
    arguments: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a world looks.

    Attributes:
      category, application: what it is about.
      words: other words for the world's.
      dresses: of the tools that are there, by the world's name, in the order in which they are declared.
      distractors: declarations of tools that serve nothing here.
      system: the system prompt; none if empty.
      persona: of the user.
      envelope: the form of a result.
      failures: share of calls that fail at first.
      thinking: whether the agent reasons.
      parallel: whether it may call several tools at once.
    """

    category: str = ""
    application: str = ""
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dresses: Mapping[str, Dress] = dataclasses.field(default_factory=dict)
    distractors: Sequence[Mapping[str, Any]] = ()
    system: str = ""
    persona: Persona = PERSONAS[0]
    envelope: str = "plain"
    failures: float = 0.0
    thinking: bool = True
    parallel: bool = True

    def outward(self, value: Any) -> Any:
        """The world's words as this variant's, in text and inside lists and objects."""
        return _replaced(value, self.words)

    def inward(self, value: Any) -> Any:
        """The inverse of `outward`."""
        return _replaced(value, self._inverse)

    @functools.cached_property
    def _inverse(self) -> dict[str, str]:
        return {new: old for old, new in self.words.items()}

    def declared(self, declaration: Mapping[str, Any]) -> Tool:
        """One of the world's tools as this variant's."""
        function = declaration["function"]
        dress = self.dresses[function["name"]]
        schema = function["parameters"]
        parameters = {
            "type": "object",
            "properties": {dress.arguments[n]: self.outward(inner) for n, inner in schema["properties"].items()},
            "required": [dress.arguments[n] for n in schema["required"]],
        }
        return Tool(dress.name, self.outward(dress.description), parameters, dict)

    def call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """A call of the world's tool as one of this variant's."""
        dress = self.dresses[call["name"]]
        arguments = {dress.arguments[name]: self.outward(value) for name, value in call["arguments"].items()}
        return {"name": dress.name, "arguments": arguments}

    def wrapped(self, text: str) -> str:
        """A result in its envelope."""
        error = text.startswith("error: ")
        if self.envelope == "json":
            return json.dumps({"error": text.removeprefix("error: ")} if error else {"result": text})
        if self.envelope == "tagged":
            return text if error else f"<result>{text}</result>"
        if self.envelope == "status":
            return f"[failed] {text}" if error else f"[ok] {text}"
        return text

    def unwrapped(self, text: str) -> str:
        """The inverse of `wrapped`."""
        if self.envelope == "json":
            held = json.loads(text)
            return held["result"] if "result" in held else f"error: {held['error']}"
        if self.envelope == "tagged":
            return text.removeprefix("<result>").removesuffix("</result>")
        if self.envelope == "status":
            return text.removeprefix("[ok] ").removeprefix("[failed] ")
        return text


@functools.lru_cache(1 << 10)
def _pattern(words: frozenset[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(words, key=lambda word: (-len(word), word))))})\b")


def _replaced(value: Any, words: Mapping[str, str]) -> Any:
    if not words:
        return value
    if isinstance(value, str):
        return _pattern(frozenset(words)).sub(lambda match: words[match[0]], value)
    if isinstance(value, list):
        return [_replaced(each, words) for each in value]
    if isinstance(value, Mapping):
        return {key: _replaced(inner, words) for key, inner in value.items()}
    return value
