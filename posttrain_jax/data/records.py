"""The canonical record: what every shape of training data becomes, and its form as a line of JSON.

A record is a conversation in OpenAI's form with what its template said beside it: tools, a reward, a pair of answers,
whether the model thinks, for which family it was made. `Record.to_dict` and `from_dict` are inverse.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain_jax.chat.messages import ChatError, calls_of, check_roles, function_of, reasoning_of, visible_text

Message = dict[str, Any]

MARK = "record"  # the field that tells a canonical record from other objects; its value is the form's version
VERSION = 1
STAGES = ("sft", "rl", "pref", "agentic")
VARIANTS = (None, "instruct", "thinking")


@dataclass(frozen=True)
class Record:
    """One training record.

    Attributes:
      messages: the conversation; for a pair, what comes before the two answers.
      tools: JSON-schema functions, bare or as ``{"type": "function", "function": ...}``.
      thinking: whether the model reasons before it answers.
      stage: what it was made for: sft, rl (a prompt, or a trajectory with its reward), pref (a pair), agentic.
      family: the chat format that it was made for; any will do.
      variant: the family's release: Kimi K2's instruct or thinking.
      chosen: the better continuation of ``messages``, of a pair.
      rejected: the worse one.
      reward: of the trajectory; qualitative ones are 1, 0.5 or 0.
      annotations: everything else that the data said, by field.
      template: name of the template that it was read by.
    """

    messages: list[Message]
    tools: list[Message] = field(default_factory=list)
    thinking: bool = True
    stage: str = "sft"
    family: str | None = None
    variant: str | None = None
    chosen: list[Message] | None = None
    rejected: list[Message] | None = None
    reward: float | None = None
    annotations: dict[str, Any] = field(default_factory=dict)
    template: str = MARK

    def conversation(self) -> dict[str, Any]:
        """What is imitated: ``messages``, behind them the better answer of a pair; ``tools`` and ``thinking`` where
        they are not the default.

        Raises:
          ValueError: a prompt alone.
        """
        messages = [*self.messages, *(self.chosen or ())]
        if not any(message["role"] == "assistant" for message in messages):
            raise ValueError("a prompt with no assistant message, so nothing to learn from: only RL can use it")
        tools: dict[str, Any] = {"tools": self.tools} if self.tools else {}
        return {"messages": messages, **tools, **({} if self.thinking else {"thinking": False})}

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it, without the fields that are at their defaults."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        empty = dataclasses.asdict(Record([]))
        return {MARK: VERSION, **{name: value for name, value in kept.items() if value != empty[name]}}


FIELDS: dict[str, tuple[type, ...]] = {
    "messages": (list,),
    "tools": (list,),
    "thinking": (bool,),
    "stage": (str,),
    "family": (str, type(None)),
    "variant": (str, type(None)),
    "chosen": (list, type(None)),
    "rejected": (list, type(None)),
    "reward": (float, int, type(None)),
    "annotations": (dict,),
    "template": (str,),
}


def from_dict(value: Mapping[str, Any]) -> Record:
    """The record that `Record.to_dict` wrote.

    Raises:
      ValueError: says which field is wrong.
    """
    if value.get(MARK) != VERSION:
        raise ValueError(f"field {MARK!r} is {value.get(MARK)!r:.80}; this release reads version {VERSION}")
    for name, inner in value.items():
        if name != MARK and name not in FIELDS:
            raise ValueError(f"a canonical record has no field {name!r}{nearest(name, FIELDS)}")
        if name != MARK and (not isinstance(inner, FIELDS[name]) or (name == "reward" and isinstance(inner, bool))):
            raise ValueError(f"field {name!r} is {type_name(inner)}; expected {type_name(FIELDS[name][0]())}")
    return checked(Record(**{"messages": [], **{name: inner for name, inner in value.items() if name != MARK}}))


def checked(record: Record) -> Record:
    """The record, every part of which a chat format can write.

    Raises:
      ValueError: names the message by its index.
    """
    one_of("stage", record.stage, STAGES)
    one_of("variant", record.variant, VARIANTS)
    check_messages("messages", record.messages)
    if (record.chosen is None) != (record.rejected is None):
        raise ValueError("a pair needs both chosen and rejected")
    for name in ("chosen", "rejected"):
        if (answer := getattr(record, name)) is not None:
            check_messages(name, answer, before=record.messages)
            if not answer or answer[-1].get("role") != "assistant":
                raise ValueError(f"field {name!r} does not end with an assistant message")
    if record.chosen is not None and record.chosen == record.rejected:
        raise ValueError("chosen and rejected are the same, so nothing to prefer")
    if not record.messages and record.chosen is None:
        raise ValueError("field 'messages' is empty")
    for tool in record.tools:
        if not isinstance(tool, Mapping):
            raise ValueError(f"tool {tool!r:.80} is not an object with a name")
        function_of(tool)
    return record


def check_messages(name: str, messages: Any, before: Sequence[Message] = ()) -> None:
    """Refuses what no format can write.

    Raises:
      ValueError: names the field, or the message by its index.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"field {name!r} is not a list of objects with role and content")
    check_roles([*before, *messages], system_anywhere=True)
    for index, message in enumerate(messages, len(before)):
        visible_text(message, index)
        reasoning_of(message, index)
        if not isinstance(calls := message.get("tool_calls"), list | None):
            raise ChatError(f"message {index} has tool_calls of type {type_name(calls)}; expected a list")
        for call in calls_of(message, index):
            call.values(index)
            if not isinstance(call.id, str | None):
                raise ChatError(f"message {index} has a call with the id {call.id!r:.80}; expected text")
        for key in ("name", "tool_call_id"):
            if not isinstance(message.get(key), str | None):
                raise ChatError(f"message {index} has {key} {message[key]!r:.80}; expected text")


def one_of(name: str, value: Any, known: Sequence[str | None]) -> None:
    """Raises ValueError for a value that is not known; names the nearest."""
    if value not in known:
        names = [each for each in known if each is not None]
        raise ValueError(f"{name} {value!r:.80} is not one of {', '.join(names)}{nearest(str(value), names)}")


def nearest(name: str, names: Collection[str], cutoff: float = 0.6) -> str:
    """The likeliest of ``names``, as the end of an error; nothing when none is near."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def type_name(value: Any) -> str:
    """The type of a decoded JSON value, for errors."""
    return "null" if value is None else type(value).__name__
