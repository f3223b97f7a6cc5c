"""One tool: a typed Python function with its JSON schema.

>>> @tool
... def add(count: int, item: Literal["tea", "cup"] = "tea") -> str:
...     '''Puts an item into the basket.'''
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from posttrain_jax.chat.schema import declared_types, has_type

NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}
ARGUMENT = re.compile(r"^ {2,}(\w+): (.+(?:\n {4,}.+)*)", re.MULTILINE)


class ToolError(Exception):
    """A tool cannot do what it was asked; the message is what the model reads."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
      name: what it is called by.
      description: what it does, for the model.
      parameters: JSON schema of an object with its arguments.
      function: takes the arguments by name; what it returns, or awaits, is shown as text.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., Any]

    @property
    def declaration(self) -> dict[str, Any]:
        """The tool as a chat declares it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def problems(self, arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong with the arguments of a call, a line each."""
        return _problems(arguments, self.parameters, "")


def tool(function: Callable[..., Any], name: str | None = None) -> Tool:
    """A function or method as a tool: its docstring the description, its annotations the schema.

    Parameters are ``str``, ``int``, ``float``, ``bool``, ``Literal``, lists and dicts of these, and unions; one with a
    default may be left out. A line under ``Args:`` describes each.

    Raises:
      TypeError: a parameter without a type that JSON has.
    """
    hints = typing.get_type_hints(function)
    documented = inspect.getdoc(function) or ""
    description, _, listed = documented.partition("\nArgs:\n")
    told = {match[1]: " ".join(match[2].split()) for match in ARGUMENT.finditer(listed)}
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in hints or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"parameter {parameter.name!r} of {function.__name__} has no type that JSON has")
        schema = schema_of(hints[parameter.name], f"parameter {parameter.name!r} of {function.__name__}")
        schema |= {"description": told[parameter.name]} if parameter.name in told else {}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        properties[parameter.name] = schema
    parameters = {"type": "object", "properties": properties, "required": required}
    return Tool(name or function.__name__, " ".join(description.split()), parameters, function)


def schema_of(hint: Any, where: str = "the type") -> dict[str, Any]:
    """The JSON schema of a Python type.

    Raises:
      TypeError: JSON has no such type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in NAMES:
        return {"type": NAMES[hint]}
    if hint is type(None):
        return {"type": "null"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0], where)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], where)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(each, where) for each in arguments]}
    raise TypeError(f"{where} has type {hint}; expected one that JSON has")


def _problems(value: Any, schema: Mapping[str, Any], where: str) -> list[str]:
    """What of a value its schema does not allow; ``where`` it stands, empty for the arguments themselves."""
    expected = declared_types(schema)
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where} is {value!r:.60}; expected one of {', '.join(map(repr, schema['enum']))}"]
    if expected and not any(has_type(value, name) for name in expected):
        return [f"{where or 'arguments'} is {value!r:.60}; expected {' or '.join(sorted(expected))}"]
    if "anyOf" in schema:
        found = [_problems(value, alternative, where) for alternative in schema["anyOf"]]
        return [] if not all(found) else min(found, key=len)
    if isinstance(value, list) and "items" in schema:
        return [line for i, each in enumerate(value) for line in _problems(each, schema["items"], f"{where}[{i}]")]
    return _object_problems(value, schema, where) if isinstance(value, Mapping) else []


def _object_problems(value: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> list[str]:
    known = schema.get("properties", {})
    others = schema.get("additionalProperties", not known)
    found = []
    for key in schema.get("required", ()):
        if key not in value:
            found.append(f"argument {_inside(where, key)!r} is missing")
    for key, each in value.items():
        if key in known or isinstance(others, Mapping):
            found += _problems(each, known.get(key, others), _inside(where, key))
        elif not others:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'none'}"
            found.append(f"argument {_inside(where, key)!r} is unknown; {hint}")
    return found


def _inside(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
