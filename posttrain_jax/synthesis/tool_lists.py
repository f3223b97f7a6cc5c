"""Real tools as chats declare them, from the lists that people keep: functions, OpenAPI documents, MCP servers."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain_jax.errors import UserError

TYPES = {
    "dict": "object",
    "hashmap": "object",
    "tuple": "array",
    "list": "array",
    "arraylist": "array",
    "float": "number",
    "double": "number",
    "long": "integer",
    "int": "integer",
    "bool": "boolean",
    "str": "string",
    "char": "string",
}
JSON_TYPES = ("object", "array", "number", "integer", "boolean", "string", "null")
METHODS = ("get", "put", "post", "delete", "patch")
LONGEST_NAME = 64  # characters, as OpenAI allows


def read(path: str | Path) -> list[dict[str, Any]]:
    """The tools of a .json or .jsonl file, also .gz, in any of the forms below; each name once.

    Raises:
      UserError: no tools in it, or no JSON.
    """
    path = Path(path).expanduser()
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode()
        try:
            values = [json.loads(text)]
        except json.JSONDecodeError:
            values = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: {error}") from error
    found = {tool["function"]["name"]: tool for value in values for tool in tools_of(value)}
    if not found:
        raise UserError(f"{path}: no tools; expected JSON-schema functions, an OpenAPI document or MCP's tools/list")
    return list(found.values())


def tools_of(value: Any) -> Iterator[dict[str, Any]]:
    """Tools of a decoded value: a function bare or wrapped, a list, MCP's ``tools/list``, OpenAPI, a row that has a
    ``function`` or ``tools``."""
    if isinstance(value, list):
        for each in value:
            yield from tools_of(each)
    elif not isinstance(value, Mapping):
        return
    elif isinstance(value.get("paths"), Mapping):
        yield from _openapi(value)
    elif isinstance(value.get("name"), str) and ("parameters" in value or "inputSchema" in value):
        yield _tool(value["name"], value.get("description"), value.get("parameters", value.get("inputSchema")))
    else:
        for key in ("result", "tools", "functions", "function"):
            yield from tools_of(value.get(key))


def _tool(name: str, description: Any, schema: Any) -> dict[str, Any]:
    parameters = schema_of(schema) if isinstance(schema, Mapping) else {}
    parameters = {"type": "object", "properties": {}, "required": []} | parameters
    called = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:LONGEST_NAME] or "tool"
    about = " ".join(str(description or "").split())
    return {"type": "function", "function": {"name": called, "description": about, "parameters": parameters}}


def schema_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with JSON Schema's types in place of a programming language's; an unknown type is left out."""
    found: dict[str, Any] = {}
    for key, inner in schema.items():
        if key == "type" and isinstance(inner, str):
            kind = TYPES.get(inner.lower(), inner.lower())
            found |= {"type": kind} if kind in JSON_TYPES else {}
        elif key == "properties" and isinstance(inner, Mapping):
            found[key] = {name: schema_of(each) if isinstance(each, Mapping) else {} for name, each in inner.items()}
        elif key == "required":
            found |= {key: [name for name in inner if isinstance(name, str)]} if isinstance(inner, list) else {}
        elif key in ("anyOf", "oneOf", "allOf") and isinstance(inner, list):
            found[key] = [schema_of(each) for each in inner if isinstance(each, Mapping)]
        else:
            found[key] = schema_of(inner) if isinstance(inner, Mapping) else inner
    return found


def _openapi(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            operation = item.get(method) if isinstance(item, Mapping) else None
            if not isinstance(operation, Mapping):
                continue
            properties: dict[str, Any] = {}
            required = []
            for given in [*item.get("parameters", ()), *operation.get("parameters", ())]:
                each = _resolved(given, document)
                schema = each.get("schema", {k: v for k, v in each.items() if k in ("type", "enum", "items")})
                about = {"description": each["description"]} if "description" in each else {}
                properties[each["name"]] = {**_resolved(schema, document), **about}
                required += [each["name"]] if each.get("required") else []
            body = _resolved(operation.get("requestBody", {}), document).get("content", {}).get("application/json")
            if body:
                schema = _resolved(body.get("schema", {}), document)
                properties |= schema.get("properties", {"body": schema})
                required += schema.get("required", ())
            schema = {"type": "object", "properties": properties, "required": list(dict.fromkeys(required))}
            about = operation.get("summary") or operation.get("description")
            yield _tool(operation.get("operationId") or f"{method} {path}", about, schema)


def _resolved(value: Any, document: Mapping[str, Any], depth: int = 0) -> Any:
    """A value with its local references in place; one that holds itself ends after a few turns."""
    if isinstance(value, list):
        return [_resolved(each, document, depth) for each in value]
    if not isinstance(value, Mapping):
        return value
    reference = value.get("$ref")
    if not isinstance(reference, str):
        return {key: _resolved(inner, document, depth) for key, inner in value.items()}
    if depth > 4 or not reference.startswith("#/"):
        return {}
    found: Any = document
    for key in reference[2:].split("/"):
        found = found.get(key.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, Mapping) else {}
    return _resolved(found, document, depth + 1)
