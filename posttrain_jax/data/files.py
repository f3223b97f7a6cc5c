"""Files of JSON as lines that can be read in any order: JSONL, JSON with one array or object, either in gzip."""

from __future__ import annotations

import array
import difflib
import glob
import gzip
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from posttrain_jax.chat.schema import from_json
from posttrain_jax.errors import UserError

BOM = b"\xef\xbb\xbf"
SUFFIXES = (".jsonl", ".json")
SPACE = re.compile(r"\s*")
SEPARATOR = re.compile(r"\s*(?:,|(?=\]\s*\Z))")


class Lines:
    """Random access to the lines of a file that are not empty. Opening reads it once and notes where each one starts.

    Attributes:
      path: the file as it was named.
      unit: what one is called in errors: a line, or a record of a JSON array.
    """

    def __init__(self, path: str):
        self.path, self.unit = path, "line"
        self._file = open_unpacked(Path(path).expanduser())
        if path.endswith((".json", ".json.gz")):
            self._file, self.unit = as_lines(self._file)
        self._starts, self._numbers = array.array("q"), array.array("q")
        start = 0
        for number, line in enumerate(self._file, 1):
            if not line.isspace():
                self._starts.append(start)
                self._numbers.append(number)
            start += len(line)
        self._starts.append(start)
        if not self._numbers:
            raise UserError(f"{path} has no records")

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> bytes:
        start, end = self._starts[index], self._starts[index + 1]
        return os.pread(self._file.fileno(), end - start, start)

    def where(self, index: int) -> str:
        """What a line is called in errors."""
        return f"{self.path} {self.unit} {self._numbers[index]}"

    def number(self, index: int) -> int:
        """Its number in the file, from 1."""
        return self._numbers[index]


def decoded(line: bytes) -> Any:
    """The JSON value of a line.

    Raises:
      ValueError: not UTF-8, not JSON, or JSON whose text cannot be kept.
    """
    try:
        return from_json(line.removeprefix(BOM).decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair is not text") from error


def as_lines(file: IO[bytes]) -> tuple[IO[bytes], str]:
    """A .json file's array, or the one object that it is, as lines of a temporary file; other files stay as they are.

    An array that breaks off gives the elements before, and what stands behind them as one more, to be refused.
    """
    text = file.read().removeprefix(BOM).decode(errors="surrogateescape")
    file.seek(0)
    elements = array_elements(text) if text.lstrip().startswith("[") else whole_object(text)
    if elements is None:
        return file, "line"
    written = tempfile.TemporaryFile()
    for element in elements:  # between JSON's tokens a line's end is a space, and within them there is none
        written.write(element.replace("\r", " ").replace("\n", " ").encode(errors="surrogateescape") + b"\n")
    written.seek(0)
    file.close()
    return written, "record"


def array_elements(text: str) -> Iterator[str]:
    """The text of each element of a JSON array, as it stands."""
    decoder, start = json.JSONDecoder(), text.index("[") + 1
    while (start := SPACE.match(text, start).end()) < len(text):  # pyright: ignore[reportOptionalMemberAccess] matches ""
        if text[start] == "]" and not text[start + 1 :].strip():
            return
        try:
            end = decoder.raw_decode(text, start)[1]
        except (ValueError, RecursionError):
            end = len(text)
        after = SEPARATOR.match(text, end)
        yield text[start : end if after else len(text)]
        start = after.end() if after else len(text)


def whole_object(text: str) -> list[str] | None:
    """The text, if it is one JSON object and nothing else."""
    try:
        return [text] if isinstance(json.loads(text), dict) else None
    except (ValueError, RecursionError):
        return None


def open_unpacked(path: Path) -> IO[bytes]:
    """The file, or the text of a .gz file in a temporary one that is deleted when closed.

    Raises:
      UserError: no such file, or a damaged one.
    """
    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'missing'}{nearest_of(path)}")
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


def found(path: str) -> list[str]:
    """The files that a name stands for: itself, those of records in a folder, or those that match a glob pattern.

    Args:
      path: a file, a folder (read without the folders in it), or a pattern, where ``**`` is any number of folders.

    Raises:
      UserError: there are none; names the nearest that there is.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [path]
    pattern = str(place / "*") if place.is_dir() else str(place)
    if not glob.has_magic(pattern):
        raise UserError(f"{path} is missing{nearest_of(place)}")
    names = [name for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
    if read := [name for name in names if name.removesuffix(".gz").endswith(SUFFIXES)]:
        return read
    if place.is_dir():
        deeper = any(entry.is_dir() for entry in place.iterdir())
        hint = f"; to read the folders in it as well, name {place / '**' / '*.jsonl'}" if deeper else ""
        raise UserError(f"{path} is a folder without .jsonl or .json files{hint}")
    problem = f"{len(names)} files match {path}, none of them .jsonl or .json" if names else f"no file matches {path}"
    raise UserError(f"{problem}{nearest_of(place)}")


def nearest_of(path: Path) -> str:
    """The entry nearest to a path that is not there, in the deepest of its folders that is; as the end of an error."""
    folder = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    wanted = (*path.absolute().relative_to(folder).parts, ".jsonl")[0]
    return nearest_there(wanted, sorted(entry.name for entry in folder.iterdir()))


def nearest_there(name: str, names: Sequence[str]) -> str:
    """The likeliest of ``names``, as the end of an error; nothing when there are none."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"; the nearest there is {close[0]}" if close else ""
