"""Training data checked before it is used: what each line is, how many tokens it gives, and which lines are refused.

    python launch/check_data.py FILE… [--family=NAME] [--out=FILE.jsonl] [--refused=FILE.jsonl]

Files are .jsonl or .json, also .gz, in any shape that docs/templates.md lists. --out writes the lines that can be used
as canonical records, --refused the others with their reasons. The exit code is 1 when a line was refused.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import command_line
from absl import flags

from posttrain_jax.errors import UserError

REFUSED = 1  # exit code
SHOWN = 50  # refusals on the screen
NOTES = 20


def main(arguments: Sequence[str]) -> int:
    """Checks the files and says what was found."""
    values = _flags()
    files, rest = _files(arguments)
    command_line.parse(rest, values, __doc__ or "")
    if not files:
        raise UserError("name at least one file: python launch/check_data.py FILE…")
    from posttrain_jax.chat import FORMATS
    from posttrain_jax.data import checking

    if values.family and values.family not in FORMATS:
        near = command_line.nearest(values.family, list(FORMATS))
        raise UserError(f"--family={values.family}: no such family; the nearest is {near}")
    for name in (values.out, values.refused):
        if name and Path(name).expanduser().resolve() in [Path(file).expanduser().resolve() for file in files]:
            raise UserError(f"{name} is one of the files to be read; name another")
    refused: list[checking.Outcome] = []
    tallies: dict[str, checking.Tally] = {}
    seen = 0
    with _written(values.out) as out, _written(values.refused) as quarantine:
        for file in files:
            for outcome in checking.check(file, values.family):
                seen += 1
                if outcome.record is None:
                    refused.append(outcome._replace(line=b""))
                    text = outcome.line.decode(errors="backslashreplace").rstrip("\n")
                    _write(quarantine, {"where": outcome.where, "reason": outcome.notes[0], "line": text})
                    continue
                family = checking.family_of(outcome.record, values.family)
                tallies.setdefault(outcome.record.template, checking.Tally()).add(outcome, family)
                _write(out, outcome.record.to_dict())
    _show(tallies, refused, seen)
    return REFUSED if refused else 0


def _show(tallies: dict, refused: list, seen: int) -> None:
    from rich.box import ROUNDED
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from posttrain_jax.data.templates import TEMPLATES

    console = Console(highlight=False)
    table = Table(box=ROUNDED)
    for name in ("template", "what for", "family"):
        table.add_column(name, overflow="fold")
    for name in ("lines", "tokens", "trained", "longest"):
        table.add_column(name, justify="right")
    for name, tally in sorted(tallies.items()):
        numbers = (f"{number:,}" for number in (tally.lines, tally.tokens, tally.trained, tally.longest))
        table.add_row(name, TEMPLATES[name].about, ", ".join(sorted(tally.families)), *numbers)
    if tallies:
        console.print(table)
    notes = [(count, name, note) for name, tally in sorted(tallies.items()) for note, count in tally.notes.items()]
    for count, name, note in notes[:NOTES]:
        console.print(Text(f"note: {name}, {count:,} lines: {note}", "yellow"), soft_wrap=True)
    if len(notes) > NOTES:
        console.print(f"and {len(notes) - NOTES:,} more kinds of note")
    for outcome in refused[:SHOWN]:
        console.print(Text(f"refused: {outcome.where}: {outcome.notes[0]}", "red"), soft_wrap=True)
    if len(refused) > SHOWN:
        console.print(f"and {len(refused) - SHOWN:,} more; --refused=FILE.jsonl writes all of them")
    console.print(f"{seen:,} lines: {seen - len(refused):,} read, {len(refused):,} refused")


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("family", None, "chat format to encode in (each line's own)", flag_values=values)
    flags.DEFINE_string("out", None, "file for the canonical records", flag_values=values)
    flags.DEFINE_string("refused", None, "file for the refused lines, with their reasons", flag_values=values)
    return values


def _files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are files, and the others: flags, and what follows a flag without ``=``."""
    files, rest = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_value = before.startswith("-") and "=" not in before
        (rest if argument.startswith("-") or is_value else files).append(argument)
    return files, rest


@contextlib.contextmanager
def _written(name: str | None) -> Iterator[IO[str] | None]:
    """A file that takes its place when it is whole; None without a name."""
    if not name:
        yield None
        return
    path = Path(name).expanduser()
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        yield file
    unfinished.replace(path)


def _write(file: IO[str] | None, value: dict) -> None:
    if file is not None:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue] a TextIOWrapper
    command_line.run(main)
