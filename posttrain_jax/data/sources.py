"""Where records come from: the task generators, JSONL files, TFDS data sets.

A source is random access (what Grain reads): ``len(source)``, ``source[i]`` and ``source.where(i)``, the name of a
record in errors. A record is ``{"messages": [...]}`` of OpenAI-style dicts, and ``tools`` where it has them.
"""

from __future__ import annotations

import array
import difflib
import gzip
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import xxhash

from posttrain_jax.data import tasks
from posttrain_jax.errors import UserError

Record = dict[str, Any]

KINDS = "'tasks', 'jsonl:PATH' or 'tfds:NAME[:SPLIT]'"
GUESSING = "just a guess"  # all the thinking of a careless demonstration
TASK_RECORDS = 2**31  # the most that Grain shuffles, and more than a run reads


class Source(Protocol):
    """Random access to conversations."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def where(self, index: int) -> str:
        """What a record is called in errors."""
        ...


def open(
    spec: str,
    *,
    names: Sequence[str] = (),
    max_level: int = 0,
    system: str = "",
    seed: int = 0,
    careful_share: float = 1.0,
) -> Source:
    """The source that ``spec`` names: 'tasks', 'jsonl:PATH' (also .jsonl.gz) or 'tfds:NAME[:SPLIT]'.

    Args:
      spec: which source.
      names: task types ('tasks' only); empty means all.
      max_level: hardest level of a task ('tasks' only).
      system: system message of every conversation that brings none; empty adds none.
      seed: of the task generators ('tasks' only).
      careful_share: part of the records worked in steps; the others guess ('tasks' only).

    Raises:
      UserError: an unknown kind, a missing or empty data set, or a record that is not a conversation.
    """
    kind, _, rest = spec.partition(":")
    if spec == "tasks":
        return TaskSource(names or tasks.TASKS, max_level, system, seed, careful_share)
    if kind == "jsonl" and rest:
        return JsonlSource(rest, system)
    if kind == "tfds" and rest:
        return TfdsSource(rest, system)
    hint = f"did you mean 'jsonl:{spec}'?" if Path(spec).expanduser().is_file() else f"expected {KINDS}"
    raise UserError(f"data source {spec!r} is unknown: {hint}")


def conversation(record: Any, system: str) -> Record:
    """A record as a conversation.

    Args:
      record: ``messages`` (and ``tools``); ``prompt`` and ``response``; or ``question`` and ``answer``, where text
        before a ``####`` is the reasoning (GSM8K).
      system: system message of a conversation that brings none.

    Raises:
      ValueError: says what the record lacks.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    if "messages" in record:
        messages = _messages(record["messages"])
    elif "prompt" in record and "response" in record:
        messages = _exchange(_text(record, "prompt"), content=_text(record, "response"))
    elif "question" in record and "answer" in record:
        reasoning, _, answer = _text(record, "answer").rpartition("####")
        messages = _exchange(_text(record, "question"), reasoning_content=reasoning.strip(), content=answer.strip())
    else:
        fields = ", ".join(map(str, record)) or "none"
        raise ValueError(f"expected messages, prompt and response, or question and answer; found fields: {fields}")
    if system and messages[0].get("role") != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return {"messages": messages, **({"tools": record["tools"]} if record.get("tools") else {})}


def _exchange(prompt: str, **answer: str) -> list[Record]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", **answer}]


def _text(record: Mapping[str, Any], field: str) -> str:
    if not isinstance(record[field], str):
        raise ValueError(f"field {field!r} is {type(record[field]).__name__}; expected text")
    return record[field]


def _messages(messages: Any) -> list[Record]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("field 'messages' is not a list of objects with role and content")
    if not any(message.get("role") == "assistant" for message in messages):
        raise ValueError("field 'messages' has no assistant message, so nothing to learn from")
    return messages


def _nearest(name: str, names: Sequence[str]) -> str:
    """The likeliest of ``names``, as the end of an error; nothing when there are none."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"; the nearest there is {close[0]}" if close else ""


class TaskSource:
    """Generated problems, dealt evenly over task types and levels 0 … ``max_level``.

    A record's hash decides whether it is demonstrated with care, as ``careful_share`` of them are: worked in steps, and
    right. The others guess: they give the answer to another problem of the kind, which is right by chance alone.
    """

    def __init__(self, names: Sequence[str], max_level: int, system: str, seed: int, careful_share: float = 1.0):
        self._cells = [(name, level) for level in range(max_level + 1) for name in names]
        self._system, self._seed, self._careful_share = system, seed, careful_share

    def __len__(self) -> int:
        return TASK_RECORDS

    def __getitem__(self, index: int) -> Record:
        number, cell = divmod(index, len(self._cells))
        problem = tasks.problem(*self._cells[cell], index=number, split="train", seed=self._seed)
        careful = xxhash.xxh32_intdigest(f"{self._seed}/{index}".encode()) < self._careful_share * 2**32
        if careful:
            messages = _exchange(problem.question, reasoning_content=problem.reasoning, content=problem.answer)
        else:
            guess = tasks.problem(*self._cells[cell], index=number + 1, split="train", seed=self._seed).answer
            messages = _exchange(problem.question, reasoning_content=GUESSING, content=guess)
        return conversation({"messages": messages}, self._system)

    def where(self, index: int) -> str:
        number, cell = divmod(index, len(self._cells))
        return "task {} level {} problem {}".format(*self._cells[cell], number)


class JsonlSource:
    """One JSON object a line. Opening reads the file once, checking every line and noting where it starts; after that
    only the lines asked for are read. A compressed file is unpacked to a temporary one first; empty lines are passed
    over. ``read(value, system)`` turns a line's value into a record, or raises a ValueError that says what it lacks."""

    def __init__(self, path: str, system: str, read: Callable[[Any, str], Record] = conversation):
        self._path, self._system, self._meaning = path, system, read
        self._file = _open_unpacked(Path(path).expanduser())
        self._starts, self._numbers = array.array("q"), array.array("q")
        start = 0
        for number, line in enumerate(self._file, 1):
            if not line.isspace():
                self._starts.append(start)
                self._numbers.append(number)
                self._read(line, len(self._numbers) - 1)
            start += len(line)
        self._starts.append(start)
        if not self._numbers:
            raise UserError(f"{path} has no records")

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        start, end = self._starts[index], self._starts[index + 1]
        return self._read(os.pread(self._file.fileno(), end - start, start), index)

    def where(self, index: int) -> str:
        return f"{self._path} line {self._numbers[index]}"

    def _read(self, line: bytes, index: int) -> Record:
        try:
            return self._meaning(json.loads(line), self._system)
        except json.JSONDecodeError as error:
            raise UserError(f"{self.where(index)}: not JSON: {error.msg} at character {error.pos + 1}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.where(index)}: {error}") from error


def _open_unpacked(path: Path) -> IO[bytes]:
    """The file, or the text of a .gz file in a temporary one that is deleted when closed."""
    if not path.is_file():
        folder = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
        wanted = (*path.absolute().relative_to(folder).parts, ".jsonl")[0]
        entries = sorted(entry.name for entry in folder.iterdir())
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'missing'}{_nearest(wanted, entries)}")
    if path.suffix != ".gz":
        return path.open("rb")
    unpacked = tempfile.TemporaryFile()
    try:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, unpacked)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}") from error
    unpacked.seek(0)
    return unpacked


class TfdsSource:
    """A prepared TFDS data set in a random-access format, read without TensorFlow and without its building code.

    ``NAME`` is as TFDS has it, ``name[/config][:version]``, the newest version unless given; ``SPLIT`` may be a slice
    (``train[:10%]``) and is ``train`` unless given. The folder is ``TFDS_DATA_DIR`` or TFDS's own default. The fields
    are those of `conversation`.
    """

    def __init__(self, spec: str, system: str):
        import tensorflow_datasets as tfds

        match = re.fullmatch(r"(?P<name>[^:]+)(:(?P<version>\d+\.\d+\.\d+))?(:(?P<split>.+))?", spec)
        if match is None:
            raise UserError(f"data source 'tfds:{spec}' is not of the form tfds:NAME[:SPLIT]")
        self._name, self._split, self._system = match["name"], match["split"] or "train", system
        root = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
        builder = tfds.builder_from_directory(_prepared(root, match["name"], match["version"]))
        try:
            self._source = builder.as_data_source(split=self._split)  # pyright: ignore[reportCallIssue] TFDS hides the signature
        except (ValueError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"TFDS data set {self._name!r}, split {self._split!r}: {reason} "
                f"(splits: {', '.join(builder.info.splits)}; it has to be prepared with file_format='array_record')"
            ) from error
        if not len(self._source):
            raise UserError(f"TFDS data set {self._name!r}, split {self._split!r}, has no records")
        self[0]  # the fields are those of every record: say at once if they do not fit

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = _plain(self._source[index])
        if isinstance(record.get("messages"), dict):  # TFDS keeps a sequence of dicts as a dict of sequences
            columns = record["messages"]
            record["messages"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        try:
            return conversation(record, self._system)
        except ValueError as error:
            raise UserError(f"{self.where(index)}: {error}") from error

    def where(self, index: int) -> str:
        return f"TFDS data set {self._name!r}, split {self._split!r}, record {index}"


def _prepared(root: Path, name: str, version: str | None) -> Path:
    """The folder of a prepared data set: ``root/name/version``, the newest without a version."""
    found = [info.parent for info in (root / name).glob(f"{version or '*'}/dataset_info.json")]
    if not found:
        there = sorted({str(info.parent.parent.relative_to(root)) for info in root.glob("**/dataset_info.json")})
        wanted = f"{name}:{version}" if version else name
        raise UserError(f"TFDS data set {wanted!r} is not prepared in {root} (TFDS_DATA_DIR){_nearest(name, there)}")
    return max(found, key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.name)])


def _plain(value: Any) -> Any:
    """NumPy and bytes as lists, numbers and text."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.decode() if isinstance(value, bytes) else value
