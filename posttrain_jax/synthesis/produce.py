"""Makes a file of records, one task after another, and can be stopped and begun again at any time.

Tasks are worked at the same time and written in their order: each leaves one line, in ``records.jsonl`` or, with its
reason, in ``rejected.jsonl``. So the files tell where to go on, and what comes is the same as without a stop.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from posttrain_jax.data.records import Record
from posttrain_jax.errors import UserError

RECORDS, REJECTED, SETTINGS = "records.jsonl", "rejected.jsonl", "settings.json"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What became of a task: a record, or the reason why there is none, and what else there is to say of that."""

    index: int
    record: Record | None
    reason: str = ""
    about: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Counts:
    """Lines written, and why others were not."""

    accepted: int = 0
    rejected: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def tried(self) -> int:
        """Attempts in all."""
        return self.accepted + sum(self.rejected.values())


Make = Callable[[int], Coroutine[Any, Any, Attempt]]


async def produce(
    out: Path,
    make: Make,
    settings: dict[str, Any],
    *,
    count: int,
    concurrency: int,
    most: int,
    told: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Writes until there are ``count`` records, or ``most`` tasks have been tried.

    Args:
      out: folder; what an earlier run left there is continued.
      make: works the task of a number.
      settings: what ``make`` depends on; another run's must be the same.
      count: records.
      concurrency: tasks at a time.
      most: tasks in all.
      told: hears of every line.

    Raises:
      UserError: the folder holds the work of other settings, or lines that no run wrote.
    """
    out.mkdir(parents=True, exist_ok=True)
    _same_settings(out / SETTINGS, settings)
    counts, keys, index = _resumed(out)
    told(counts)
    waiting: collections.deque[asyncio.Task[Attempt]] = collections.deque()
    with (out / RECORDS).open("ab") as records, (out / REJECTED).open("ab") as rejected:
        try:
            while counts.accepted < count and (waiting or index < most):
                while len(waiting) < concurrency and index < most:
                    waiting.append(asyncio.create_task(make(index)))
                    index += 1
                attempt = _deduplicated(await waiting.popleft(), keys)
                if attempt.record is not None:
                    counts.accepted += 1
                    keys.add(attempt.record.annotations["provenance"]["key"])
                    records.write(_line(attempt.record.to_dict()))
                    records.flush()
                else:
                    counts.rejected[attempt.reason] += 1
                    rejected.write(_line({"index": attempt.index, "reason": attempt.reason, **attempt.about}))
                    rejected.flush()
                told(counts)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    return counts


def _deduplicated(attempt: Attempt, keys: set[str]) -> Attempt:
    if attempt.record is not None and attempt.record.annotations["provenance"]["key"] in keys:
        return Attempt(attempt.index, None, "duplicate")
    return attempt


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        path.write_text(json.dumps(settings, indent=1) + "\n")
        return
    before = json.loads(path.read_text())
    for name in sorted({*before, *settings}):
        if before.get(name) != settings.get(name):
            raise UserError(
                f"{path}: the records there were made with {name}={before.get(name)!r}, not {settings.get(name)!r}; "
                "name another folder"
            )


def _resumed(out: Path) -> tuple[Counts, set[str], int]:
    """What an earlier run wrote, a last line that was cut off taken away; and the next task's number."""
    counts, keys, last = Counts(), set[str](), -1
    for record in lines(out / RECORDS):
        found = record["annotations"]["provenance"]
        keys.add(found["key"])
        counts.accepted += 1
        last = max(last, found["index"])
    for line in lines(out / REJECTED):
        counts.rejected[line["reason"]] += 1
        last = max(last, line["index"])
    if counts.tried != last + 1:
        raise UserError(f"{out}: {counts.tried} lines for {last + 1} tasks; name another folder")
    return counts, keys, last + 1


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of lines; what follows the last whole line is cut off."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(whole)
                return
            whole += len(line)
            yield json.loads(line)
