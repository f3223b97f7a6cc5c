"""Where records come from: the task generators, files of JSON, TFDS data sets.

A source is random access (what Grain reads): ``len(source)``, ``source[i]`` and ``source.where(i)``, the name of a
record in errors. A record is ``{"messages": [...]}`` of OpenAI-style dicts, with ``tools`` and ``thinking``
where it has them.
"""

from __future__ import annotations

import bisect
import glob
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import xxhash

from posttrain_jax.data import chinese, gym, tasks, templates
from posttrain_jax.data.files import SUFFIXES, Lines, decoded, found, nearest_there
from posttrain_jax.errors import UserError

Record = dict[str, Any]

KINDS = "'tasks', .jsonl or .json files, a folder or pattern of them, 'jsonl:PATH' or 'tfds:NAME[:SPLIT]'"
SHOWN = 10  # refusals told of a file
GUESSING = "just a guess"  # all the thinking of a careless demonstration
Demonstration = Callable[[int, int, int], Record]  # of a level, an index and a seed
TASK_RECORDS = 2**31  # the most that Grain shuffles, and more than a run reads


class Source(Protocol):
    """Random access to conversations."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def where(self, index: int) -> str:
        """What a record is called in errors."""
        ...


def open(
    spec: str | Sequence[str],
    *,
    names: Sequence[str] = (),
    max_level: int = 0,
    system: str = "",
    seed: int = 0,
    careful_share: float = 1.0,
    direct_share: float = 0.0,
    chinese_share: float = 0.0,
    demonstrations: Mapping[str, Demonstration] | None = None,
) -> Source:
    """The source that ``spec`` names: 'tasks', a file of records, 'tfds:NAME[:SPLIT]', or several of these.

    Args:
      spec: which source, or a list of them, or several between commas; a file is .jsonl or .json, also .gz, in any
        shape of `templates`, and may be called 'jsonl:PATH'; PATH may be a folder or a glob pattern.
      names: task types ('tasks' only); empty means all.
      max_level: hardest level of a task ('tasks' only).
      system: system message of every conversation that brings none; empty adds none.
      seed: of the task generators ('tasks' only).
      careful_share: part of the records worked in steps; the others guess ('tasks' only).
      direct_share: part of the records without thinking ('tasks' only).
      chinese_share: part of the records asked in Chinese, where they can be ('tasks' only).
      demonstrations: by name, the records of what is not in `data.tasks` ('tasks' only).

    Raises:
      UserError: an unknown kind, a missing or empty data set, or a record that is not a conversation.
    """
    opened = [
        TaskSource(
            names or tasks.TASKS,
            max_level,
            system,
            seed,
            careful_share,
            demonstrations,
            direct_share=direct_share,
            chinese_share=chinese_share,
        )
        if each == "tasks"
        else _open_one(each, system)
        for each in parts(spec)
    ]
    return opened[0] if len(opened) == 1 else JoinedSource(opened)


def parts(spec: str | Sequence[str]) -> list[str]:
    """The sources of a list, or between commas; of a folder or a glob pattern, its files in the order of their names.

    Raises:
      UserError: none is named, or a file, folder or pattern that is not there; names the nearest.
    """
    named = [each for item in ([spec] if isinstance(spec, str) else spec) for each in _between_commas(item)]
    if not named:
        raise UserError(f"no data is named: expected {KINDS}")
    return [file for name in named for file in _files(name)]


def _between_commas(spec: str) -> list[str]:
    """The names in a text; one that is there may hold commas."""
    file = spec.removeprefix("jsonl:")
    if file and Path(file).expanduser().exists():
        return [spec]
    return [each.strip() for each in spec.split(",") if each.strip()]


def _files(name: str) -> list[str]:
    if (file := file_of(name)) is None:
        return [name]
    return [f"jsonl:{each}" for each in found(file)] if name.startswith("jsonl:") else found(file)


def file_of(spec: str) -> str | None:
    """What a source is read from: 'jsonl:PATH', a name that ends like a file, a pattern, or any that is there."""
    if spec.startswith("jsonl:"):
        return spec.removeprefix("jsonl:") or None
    place = Path(spec).expanduser()
    like_a_file = spec.removesuffix(".gz").endswith(SUFFIXES) or "/" in spec or glob.has_magic(spec)
    if spec != "tasks" and (like_a_file or place.exists()) and not spec.startswith("tfds:"):
        return spec
    return None


def _open_one(spec: str, system: str) -> Source:
    kind, _, rest = spec.partition(":")
    if kind == "tfds" and rest:
        return TfdsSource(rest, system)
    if file := file_of(spec):
        return FileSource(file, system)
    raise UserError(f"data source {spec!r} is unknown: expected {KINDS}")


def conversation(record: Any, system: str) -> Record:
    """A record, in any shape of `templates`, as the conversation to imitate: of a pair, with the better answer.

    Args:
      record: what was decoded.
      system: system message of a conversation that brings none.

    Raises:
      ValueError: says what the record lacks.
    """
    read = templates.read(record).record.conversation()
    if system and read["messages"][0]["role"] != "system":
        read["messages"] = [{"role": "system", "content": system}, *read["messages"]]
    return read


def _exchange(prompt: str, **answer: str) -> list[Record]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", **answer}]


class TaskSource:
    """Generated problems, dealt evenly over task types and levels 0 … ``max_level``.

    A record's hash decides whether it is demonstrated with care, as ``careful_share`` of them are: worked in steps, and
    right. The others guess: they give the answer to another problem of the kind, which is right by chance alone.
    ``direct_share`` of all give the right answer without thinking, and ``chinese_share`` are asked in Chinese, where
    there is a wording. ``demonstrations`` are all careful.
    """

    def __init__(
        self,
        names: Sequence[str],
        max_level: int,
        system: str,
        seed: int,
        careful_share: float = 1.0,
        demonstrations: Mapping[str, Demonstration] | None = None,
        *,
        direct_share: float = 0.0,
        chinese_share: float = 0.0,
    ):
        self._demonstrations = demonstrations or {}
        self._direct_share, self._chinese_share = direct_share, chinese_share
        self._cells = [(name, level) for level in range(max_level + 1) for name in names]
        self._system, self._seed, self._careful_share = system, seed, careful_share
        if found := next(filter(gym.is_gym, names), None):
            raise UserError(f"task {found!r} has no demonstrations: name sft.data, or leave out the stage 'sft'")

    def __len__(self) -> int:
        return TASK_RECORDS

    def __getitem__(self, index: int) -> Record:
        number, cell = divmod(index, len(self._cells))
        name, level = self._cells[cell]
        if name in self._demonstrations:
            return conversation(self._demonstrations[name](level, number, self._seed), system="")
        problem = tasks.problem(*self._cells[cell], index=number, split="train", seed=self._seed)
        asked = chinese.question(problem) if self._is("chinese", index, self._chinese_share) else None
        asked = asked or problem.question
        if self._is("direct", index, self._direct_share):
            read = conversation({"messages": _exchange(asked, content=problem.answer)}, self._system)
            return read | {"thinking": False}
        careful = xxhash.xxh32_intdigest(f"{self._seed}/{index}".encode()) < self._careful_share * 2**32
        if careful:
            messages = _exchange(asked, reasoning_content=problem.reasoning, content=problem.answer)
        else:
            guess = tasks.problem(*self._cells[cell], index=number + 1, split="train", seed=self._seed).answer
            messages = _exchange(asked, reasoning_content=GUESSING, content=guess)
        return conversation({"messages": messages}, self._system)

    def _is(self, what: str, index: int, share: float) -> bool:
        """Whether a record is one of a share, by its hash."""
        return xxhash.xxh32_intdigest(f"{what}/{self._seed}/{index}".encode()) < share * 2**32

    def where(self, index: int) -> str:
        number, cell = divmod(index, len(self._cells))
        return "task {} level {} problem {}".format(*self._cells[cell], number)


class FileSource:
    """A file of records, each in any shape of `templates`, or in one that ``read(value, system)`` knows.

    Opening reads it once and checks every line; after that only the lines asked for are read. Empty lines are passed
    over.

    Raises:
      UserError: with a line for each of the first records that are refused, and how many there are.
    """

    def __init__(self, path: str, system: str, read: Callable[[Any, str], Record] = conversation):
        self._lines, self._system, self._meaning = Lines(path), system, read
        refused = [reason for index in range(len(self._lines)) if (reason := self._refusal(index))]
        if refused:
            shown = refused[:SHOWN]
            if len(refused) > SHOWN:
                shown.append(
                    f"{path}: {len(refused)} of {len(self._lines)} records refused in all; "
                    f"python launch/check_data.py {path} tells of each and writes the others"
                )
            raise UserError("\n".join(shown))

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Record:
        try:
            return self._meaning(decoded(self._lines[index]), self._system)
        except ValueError as error:
            raise UserError(f"{self.where(index)}: {error}") from error

    def where(self, index: int) -> str:
        return self._lines.where(index)

    def _refusal(self, index: int) -> str:
        try:
            self[index]
        except UserError as error:
            return str(error)
        return ""


class JoinedSource:
    """Several sources, one behind the other.

    Attributes:
      sources: these.
    """

    def __init__(self, sources: Sequence[Source]):
        self.sources = sources
        self._ends = list(itertools.accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        source, inner = self._at(index)
        return source[inner]

    def where(self, index: int) -> str:
        source, inner = self._at(index)
        return source.where(inner)

    def _at(self, index: int) -> tuple[Source, int]:
        number = bisect.bisect_right(self._ends, index)
        return self.sources[number], index - (self._ends[number - 1] if number else 0)


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
        raise UserError(
            f"TFDS data set {wanted!r} is not prepared in {root} (TFDS_DATA_DIR){nearest_there(name, there)}"
        )
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
