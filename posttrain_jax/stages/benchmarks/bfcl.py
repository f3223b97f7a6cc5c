"""The Berkeley Function-Calling Leaderboard's questions of one turn.

Several turns need its executors, which are programs and no data: such files are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_jax.data.files import Lines, decoded
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.graders.calls import abstained, called
from posttrain_jax.rewards.verdict import Verdict, judged
from posttrain_jax.stages.benchmarks.question import Message, Question

FOLDERS = ("../answers", "possible_answer", "../possible_answer")
TURNS = ("multi_turn", "memory", "web_search", "format_sensitivity")  # categories of several turns
TYPES = {
    **dict.fromkeys(("dict", "HashMap", "Object", "object"), "object"),
    **dict.fromkeys(("float", "double", "Double", "Float", "number"), "number"),
    **dict.fromkeys(("int", "long", "Long", "short", "byte", "Integer", "Bigint", "integer"), "integer"),
    **dict.fromkeys(("tuple", "list", "Array", "ArrayList", "Set", "Queue", "Stack", "array"), "array"),
    **dict.fromkeys(("String", "char", "string"), "string"),
    **dict.fromkeys(("Boolean", "boolean"), "boolean"),
    "null": "null",
}


def read(path: Path) -> list[Question]:
    """The questions of a file, or of every file of one turn in a folder; answers lie in a folder beside it.

    Raises:
      UserError: a file of several turns, no answers, or a row of another shape.
    """
    if not path.is_dir():
        return _of_file(path)
    files = [f for f in sorted(path.iterdir()) if f.is_file() and ".json" in f.name]
    chosen = [f for f in files if not any(category in f.name for category in TURNS)]
    if not chosen:
        raise UserError(f"{path} has no file of questions of one turn")
    return [question for file in chosen for question in _of_file(file)]


def _of_file(path: Path) -> list[Question]:
    subset = path.name.partition(".")[0].removeprefix("BFCL_v4_").removeprefix("BFCL_v3_")
    if any(category in subset for category in TURNS):
        raise UserError(f"{path} has questions of several turns; those of one turn are {', '.join(_there(path))}")
    wanted = {} if "relevance" in subset else _answers(path)
    return [_question(row, subset, wanted, where) for row, where in _rows(path)]


def _there(path: Path) -> list[str]:
    return sorted(f.name for f in path.parent.iterdir() if not any(category in f.name for category in TURNS))


def _answers(path: Path) -> dict[str, list]:
    for folder in FOLDERS:
        if (found := path.parent / folder / path.name).is_file():
            return {row["id"]: row["ground_truth"] for row, _ in _rows(found)}
    raise UserError(f"{path} has no answers: expected {path.parent / FOLDERS[1] / path.name}")


def _rows(path: Path) -> list[tuple[dict[str, Any], str]]:
    lines = Lines(str(path))
    rows = []
    for index in range(len(lines)):
        try:
            rows.append((decoded(lines[index]), lines.where(index)))
        except ValueError as error:
            raise UserError(f"{lines.where(index)}: {error}") from None
    return rows


def _question(row: Mapping[str, Any], subset: str, answers: Mapping[str, list], where: str) -> Question:
    try:
        name, turns = row["id"], row["question"]
        functions = [_tool(function) for function in row["function"]]
        wanted = answers[name] if "relevance" not in subset else None
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: not a row of bfcl, or without an answer: {error!r}") from None
    if len(turns) != 1:
        raise UserError(f"{where}: a question of {len(turns)} turns; expected 1")

    def grade(message: Message) -> Verdict:
        if wanted is not None:
            return called(message, wanted, functions)
        if "irrelevance" in subset:
            return abstained(message)
        return judged(bool(message.get("tool_calls")), "no call", "")

    expected = "no call" if "irrelevance" in subset else "a call" if wanted is None else str(wanted)
    return Question("bfcl", subset, name, list(turns[0]), grade, functions, expected)


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {**function, "parameters": _schema(function.get("parameters") or {})}}


def _schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema that is meant: types of Python, Java and JavaScript by their JSON names, "any" as no type."""
    meant = {key: value for key, value in schema.items() if key != "type"}
    if (kind := schema.get("type")) and (known := TYPES.get(kind) if isinstance(kind, str) else None):
        meant["type"] = known
    if isinstance(properties := schema.get("properties"), Mapping):
        meant["properties"] = {key: _schema(inner) for key, inner in properties.items()}
    if isinstance(items := schema.get("items"), Mapping):
        meant["items"] = _schema(items)
    return meant
