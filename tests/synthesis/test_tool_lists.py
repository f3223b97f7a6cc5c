"""Tools are read from the forms that they come in."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from posttrain_jax import chat
from posttrain_jax.errors import UserError
from posttrain_jax.synthesis import tool_lists

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Tells the weather.", "parameters": SCHEMA}
WRAPPED = {"type": "function", "function": WEATHER}
MCP = {"name": "get_weather", "description": "Tells the\n weather.", "inputSchema": SCHEMA}


@pytest.mark.parametrize(
    "value",
    [
        WEATHER,
        [WRAPPED],
        {"tools": [MCP]},
        {"jsonrpc": "2.0", "id": 1, "result": {"tools": [MCP]}},
        {"id": "a", "question": [], "function": [WEATHER]},
        {"functions": [WEATHER]},
    ],
)
def test_lists_of_functions(value):
    assert list(tool_lists.tools_of(value)) == [WRAPPED]


def test_an_openapi_document():
    document = {
        "openapi": "3.0.0",
        "paths": {
            "/pets/{id}": {
                "parameters": [{"$ref": "#/components/parameters/Id"}],
                "get": {"operationId": "pets.get", "summary": "One pet."},
                "put": {
                    "description": "Changes a pet.",
                    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}}},
                },
            }
        },
        "components": {
            "parameters": {"Id": {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}},
            "schemas": {
                "Pet": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "child": {"$ref": "#/components/schemas/Pet"}},
                    "required": ["name"],
                }
            },
        },
    }
    get, put = (tool["function"] for tool in tool_lists.tools_of(document))
    assert (get["name"], get["description"]) == ("pets_get", "One pet.")
    assert get["parameters"] == {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
    assert put["name"] == "put_pets_id" and put["parameters"]["required"] == ["id", "name"]
    assert put["parameters"]["properties"]["name"] == {"type": "string"}


def test_types_of_programming_languages_become_jsons():
    schema = {"type": "dict", "properties": {"a": {"type": "tuple", "items": {"type": "float"}}, "b": {"type": "any"}}}
    assert tool_lists.schema_of(schema) == {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "number"}}, "b": {}},
    }


def test_files_are_read_and_a_name_comes_once(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(f"{json.dumps(WEATHER)}\n{json.dumps(MCP)}\n".encode()))
    assert tool_lists.read(tmp_path / "a.jsonl.gz") == [WRAPPED]
    (tmp_path / "b.json").write_text('{"rows": []}')
    with pytest.raises(UserError, match="no tools; expected"):
        tool_lists.read(tmp_path / "b.json")
    with pytest.raises(UserError, match=r"c\.json"):
        tool_lists.read(tmp_path / "c.json")


@pytest.mark.skipif("POSTTRAIN_DATA" not in os.environ, reason="POSTTRAIN_DATA names no folder with bfcl/")
def test_real_lists_can_be_declared_in_every_family():
    folder = Path(os.environ["POSTTRAIN_DATA"]) / "bfcl"
    files = [*folder.glob("questions/*.jsonl.gz"), *folder.glob("multi_turn_func_doc/*.jsonl.gz")]
    found = {}
    for file in files:
        if "multi_turn" not in file.name:  # those name their functions elsewhere
            found |= {tool["function"]["name"]: tool for tool in tool_lists.read(file)}
    assert len(found) > 1000
    asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    for family in ("kimi_k2", "glm_4_6", "minimax_m1", "minimax_m2"):
        speaker = chat.for_family(family)
        for tool in list(found.values())[::10]:
            assert speaker.encode(asked, [tool])[0]
