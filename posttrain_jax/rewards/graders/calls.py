"""Calls of tools, compared with those that were wanted: names, and arguments among accepted values.

The rules are those of the Berkeley Function-Calling Leaderboard's comparison of syntax trees, for calls that come as
names and JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_jax.chat.messages import Call, calls_of, function_of
from posttrain_jax.chat.schema import mismatches, parameter_schemas
from posttrain_jax.rewards.verdict import Verdict, judged, wrong

Arguments = Mapping[str, Any]
IGNORED = re.compile(r"[ ,./\-_*^]")  # of text: how a value is written, and not what it is


def called(message: Mapping[str, Any], wanted: Sequence[Mapping[str, Mapping[str, list]]], tools: Sequence) -> Verdict:
    """Right if the calls of a message are the wanted ones, in any order, and no others.

    Args:
      message: the assistant's, parsed.
      wanted: for each call ``{name: {argument: accepted values}}``; an argument that may be left out accepts "". Where
        a value is an object, its fields have accepted values in turn.
      tools: their JSON schemas.
    """
    calls = calls_of(message, 0)
    shown = "; ".join(f"{call.name}({call.arguments})" for call in calls)[:1000]
    if message.get("errors"):
        return wrong("a call that cannot be read", shown, well_formed=False)
    if len(calls) != len(wanted):
        return wrong(f"{len(calls)} calls, {len(wanted)} wanted", shown)
    return judged(_paired(calls, wanted, tools), "another call", shown)


def abstained(message: Mapping[str, Any]) -> Verdict:
    """Right if nothing is called, by markup that can be read or not."""
    calls = calls_of(message, 0)
    if message.get("errors"):
        return wrong("a call that cannot be read", well_formed=False)
    return judged(not calls, "a call where no tool helps", str(message.get("content") or "")[:1000])


def valid(message: Mapping[str, Any], tools: Sequence) -> bool:
    """Whether every call can be read, is of a tool that there is, and has the arguments that its schema asks for."""
    return not message.get("errors") and all(_fits(call, tools) for call in calls_of(message, 0))


def _fits(call: Call, tools: Sequence) -> bool:
    function = _function(call.name, tools)
    if function is None:
        return False
    given, schemas = call.values(0), parameter_schemas(tools, call.name)
    return _required(function) <= given.keys() <= schemas.keys() and not mismatches(given, schemas, call.name)


def _paired(calls: Sequence[Call], wanted: Sequence[Mapping[str, Arguments]], tools: Sequence) -> bool:
    """Whether each wanted call can be given a call of its own."""
    if not wanted:
        return True
    [(name, arguments)] = wanted[0].items()
    return any(
        _is(call, name, arguments, tools) and _paired([*calls[:i], *calls[i + 1 :]], wanted[1:], tools)
        for i, call in enumerate(calls)
    )


def _is(call: Call, name: str, wanted: Arguments, tools: Sequence) -> bool:
    given, function = call.values(0), _function(name, tools)
    if call.name != name or not given.keys() <= wanted.keys():
        return False
    if function is not None and not _required(function) <= given.keys():
        return False
    schemas = parameter_schemas(tools, name)
    return all(
        _accepted(given[key], options, schemas.get(key)) if key in given else "" in options
        for key, options in wanted.items()
    )


def _accepted(value: Any, options: Sequence, schema: Any = None) -> bool:
    if isinstance(value, float) and isinstance(schema, Mapping) and schema.get("type") == "integer":
        return False
    return any(_same(value, option) for option in options)


def _same(value: Any, option: Any) -> bool:
    if isinstance(value, str) and isinstance(option, str):
        return _plain(value) == _plain(option)
    if isinstance(value, list) and isinstance(option, list):
        return len(value) == len(option) and all(map(_same, value, option))
    if isinstance(value, Mapping) and isinstance(option, Mapping):
        fields = {key: each if isinstance(each, list) else [each] for key, each in option.items()}
        return value.keys() <= fields.keys() and all(
            _accepted(value[key], each) if key in value else "" in each for key, each in fields.items()
        )
    return isinstance(value, bool) == isinstance(option, bool) and value == option


def _plain(text: str) -> str:
    return IGNORED.sub("", text).casefold().replace("'", '"')


def _function(name: str, tools: Sequence) -> Mapping[str, Any] | None:
    return next((function for function in map(function_of, tools) if function["name"] == name), None)


def _required(function: Mapping[str, Any]) -> set[str]:
    parameters = function.get("parameters")
    return set(parameters.get("required") or ()) if isinstance(parameters, Mapping) else set()
