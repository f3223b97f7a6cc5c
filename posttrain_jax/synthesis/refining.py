"""Records that are there, worked over step by step: near-duplicates left out, requests said in other words.

The lines of the files are taken in their order, and `produce` writes what becomes of each: a record that tells where it
comes from, or the reason why it was dropped. So this too goes on where it was stopped.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from posttrain_jax.chat.messages import calls_of, visible_text
from posttrain_jax.data import templates
from posttrain_jax.data.files import Lines, decoded, found
from posttrain_jax.data.records import Record
from posttrain_jax.rewards.judges.endpoint import Refused
from posttrain_jax.rewards.judges.judge import Ask
from posttrain_jax.synthesis import near_duplicates, rephrasing
from posttrain_jax.synthesis.finished import written
from posttrain_jax.synthesis.produce import RECORDS, REJECTED, Attempt, Make, lines

STEPS = ("deduplicate", "rephrase")


@dataclasses.dataclass(frozen=True)
class Steps:
    """What is done with each record.

    Attributes:
      threshold: similarity from which a record is a near-duplicate of one before it; None leaves them in.
      styles: how requests are said again, in turn; none leaves them as they are.
      copies: of each record that are said again.
      held: runs of words of evaluation texts, as of `near_duplicates.held_out`; what shares one is dropped.
      generator: name of the model that says them, for the record.
      seed: of the model's answers.
    """

    threshold: float | None = None
    styles: Sequence[str] = ()
    copies: int = 1
    held: Mapping[int, set[str]] = dataclasses.field(default_factory=dict)
    generator: str = ""
    seed: int = 0


class Inputs:
    """The lines of several files, one file behind the other.

    Raises:
      UserError: a file, folder or pattern that is not there, or without records.
    """

    def __init__(self, names: Sequence[str]):
        self.files = [file for name in names for file in found(name)]
        self._lines = [Lines(file) for file in self.files]
        self._ends = list(itertools.accumulate(map(len, self._lines)))

    def __len__(self) -> int:
        return self._ends[-1]

    def record(self, index: int) -> Record:
        """A line as a record; ValueError says why it is none."""
        held, inner = self._at(index)
        return templates.read(decoded(held[inner])).record

    def where(self, index: int) -> str:
        """A line's file and number."""
        held, inner = self._at(index)
        return held.where(inner)

    def digest(self) -> str:
        """Names the text of all lines."""
        state = xxhash.xxh3_128()
        for held in self._lines:
            for index in range(len(held)):
                state.update(held[index])
        return state.hexdigest()

    def _at(self, index: int) -> tuple[Lines, int]:
        number = bisect.bisect_right(self._ends, index)
        return self._lines[number], index - (self._ends[number - 1] if number else 0)


class Refining:
    """The work on some inputs: ``make`` does number *i* of ``len(self)`` pieces, each of which gives one line.

    A record is a piece, and so is each of its copies in other words. What is dropped is known before a model is asked.
    """

    def __init__(self, inputs: Inputs, steps: Steps, ask: Ask | None = None):
        if steps.styles and ask is None:
            raise ValueError("other words need a model to say them: ask is None")
        self._inputs, self._steps, self._ask = inputs, steps, ask
        self._dropped = dict(dropped(inputs, steps))
        self._pieces: list[tuple[int, str | None]] = []
        styles = itertools.cycle(steps.styles or [""])
        for index in range(len(inputs)):
            copies = steps.copies if steps.styles and index not in self._dropped else 0
            self._pieces += [(index, None), *((index, next(styles)) for _ in range(copies))]

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def make(self) -> Make:
        """What `produce` calls."""
        return self._made

    async def _made(self, number: int) -> Attempt:
        index, how = self._pieces[number]
        source = {"source": self._inputs.where(index)}
        if index in self._dropped:
            reason, more = self._dropped[index]
            return Attempt(number, None, reason, {**source, **more})
        record: Record | None = self._inputs.record(index)
        if how is not None:
            source |= {"rephrased": how}
            record, reason = await self._said_again(record, how, self._steps.seed ^ number)
            if record is None:
                return Attempt(number, None, reason, source)
        return Attempt(number, self._told(record, number, source))

    async def _said_again(self, record: Record, how: str, seed: int) -> tuple[Record | None, str]:
        """The record with its request in other words, or why there is none."""
        if not any(message["role"] == "user" for message in record.messages):
            return None, "no request to rephrase"
        assert self._ask is not None
        try:
            again = await rephrasing.rephrased(record, self._ask, how, seed)
        except Refused:
            return None, "refused by the server"
        if again is not None and near_duplicates.overlaps(asked(again), self._steps.held):
            return None, "in the evaluation data"
        return again, "not rephrased"

    def _told(self, record: Record, number: int, source: Mapping[str, str]) -> Record:
        """The record with its provenance; one that it had stands in it."""
        steps, before = self._steps, record.annotations.get("provenance")
        whole = json.dumps([record.messages, record.tools, record.chosen, record.rejected], sort_keys=True)
        provenance: dict[str, Any] = {
            "index": number,
            "key": str(number) if steps.threshold is None else xxhash.xxh64_hexdigest(whole.encode()),
            **source,
            **({"generator": steps.generator} if "rephrased" in source else {}),
            **({"before": before} if before is not None else {}),
        }
        return dataclasses.replace(record, annotations={**record.annotations, "provenance": provenance})


def dropped(inputs: Inputs, steps: Steps) -> Iterator[tuple[int, tuple[str, dict[str, str]]]]:
    """Numbers of the lines that are not used, each with the reason and what there is to say of it."""
    seen = near_duplicates.Seen(steps.threshold or 1.0)
    for index in range(len(inputs)):
        try:
            record = inputs.record(index)
        except ValueError as error:
            yield index, ("unreadable", {"detail": str(error)})
            continue
        if near_duplicates.overlaps(asked(record), steps.held):
            yield index, ("in the evaluation data", {})
        elif steps.threshold is not None and (other := seen.near(said(record), index)) is not None:
            yield index, ("near-duplicate", {"of": inputs.where(other)})


def asked(record: Record) -> str:
    """What users say."""
    messages = enumerate(record.messages)
    return "\n".join(visible_text(message, index) for index, message in messages if message["role"] == "user")


def said(record: Record) -> str:
    """All that is said but for the system's words: requests, thoughts, answers and calls; of a pair, both sides."""
    told = []
    for index, message in enumerate([*record.messages, *(record.chosen or ()), *(record.rejected or ())]):
        if message["role"] != "system":
            calls = (f"{call.name} {call.arguments}" for call in calls_of(message, index))
            told += [message.get("reasoning_content") or "", visible_text(message, index), *calls]
    return "\n".join(told)


def reported(out: Path) -> dict[str, Any]:
    """Writes ``report.json``: how many records were kept, how many said again and how, why others were dropped."""
    kept, styles = 0, Counter[str]()
    for record in lines(out / RECORDS):
        how = record["annotations"]["provenance"].get("rephrased")
        kept += how is None
        styles.update([how] if how else [])
    dropped = Counter(line["reason"] for line in lines(out / REJECTED))
    report = {"kept": kept, "rephrased": dict(sorted(styles.items())), "dropped": dict(sorted(dropped.items()))}
    written(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report
