"""What stands beside the records when they are made: counts, a map of their tools, a page to read, pairs."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain_jax.data.records import from_dict
from posttrain_jax.synthesis import coverage, difficulty, pairs, procedural, sample
from posttrain_jax.synthesis.produce import RECORDS, REJECTED, lines
from posttrain_jax.synthesis.tasks import Task

SHOWN = 40  # records on the page
DRAWN = 3000  # tools on the map


def described(out: Path, attempts: int = 1) -> dict[str, Any]:
    """Writes ``report.json``, ``coverage.svg`` and ``sample.html`` of a folder; returns the report."""
    tools: dict[str, tuple[Mapping[str, Any], str]] = {}
    toolsets: set[str] = set()
    combinations: set[str] = set()
    shown: list[dict[str, Any]] = []
    of: dict[str, Counter[str]] = {name: Counter() for name in ("world", "level", "category", "application", "persona")}
    axes, outcomes = Counter[str](), Counter[str]()
    rng = random.Random(0)
    for number, record in enumerate(lines(out / RECORDS)):
        found = record["annotations"]["provenance"]
        declared = {json.dumps(tool, sort_keys=True): tool for tool in record.get("tools", ())}
        tools |= {text: (tool, found["category"]) for text, tool in declared.items() if text not in tools}
        toolsets.add("\n".join(sorted(declared)))
        combinations.add(found["key"])
        for name, counter in of.items():
            counter[str(found[name])] += 1
        axes.update(found["perturbed"])
        outcomes.update(found["outcomes"])
        place = number if number < SHOWN else rng.randrange(number + 1)  # reservoir sampling
        shown[place : place + 1] = [record] if place < SHOWN else []
    report = {
        "combinations": len(combinations),
        "toolsets": len(toolsets),
        "tools": len(tools),
        **{name: dict(sorted(counter.items())) for name, counter in of.items()},
        "perturbed": dict(sorted(axes.items())),
        "outcomes": dict(sorted(outcomes.items())),
        "rejected": dict(sorted(Counter(line["reason"] for line in lines(out / REJECTED)).items())),
    }
    if attempts > 1:
        report["pass_at_1"] = dict(sorted(rates(out, attempts).items()))
    drawn = rng.sample(list(tools.values()), min(DRAWN, len(tools)))
    about = f"{len(combinations):,} tasks with {len(toolsets):,} toolsets of {len(tools):,} tools"
    written(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    written(out / "coverage.svg", coverage.picture([tool for tool, _ in drawn], [group for _, group in drawn]))
    written(out / "sample.html", sample.page(sorted(shown, key=_index), "Synthesised trajectories", about))
    return report


def rates(out: Path, attempts: int) -> dict[str, float]:
    """pass@1 of every task that has had all its attempts, by its number."""
    tried, passed = Counter[int](), Counter[int]()
    for record in lines(out / RECORDS):
        tried[_index(record) // attempts] += 1
        passed[_index(record) // attempts] += 1
    for line in lines(out / REJECTED):
        tried[line["index"] // attempts] += 1
        passed[line["index"] // attempts] += line["reason"] == "duplicate"  # it passed like one before it
    whole = [number for number, count in tried.items() if count == attempts]
    return {str(number): difficulty.pass_at(1, attempts, passed[number]) for number in sorted(whole)}


async def paired(out: Path, task: Callable[[int], Awaitable[Task]], count: int) -> int:
    """Writes ``pairs.jsonl`` of the first ``count`` records: each beside a careless attempt at its task and, where
    that can be, beside a refusal of it. Returns how many pairs."""
    found = []
    for number, line in enumerate(lines(out / RECORDS)):
        if number >= count:
            break
        good = from_dict(line)
        bad = await procedural.careless(await task(_index(line)))
        if bad is not None:
            found.append(pairs.preference(good, bad))
        found.append(pairs.refusal(good, number))
    written(out / "pairs.jsonl", "".join(json.dumps(pair.to_dict(), ensure_ascii=False) + "\n" for pair in found))
    return len(found)


def written(path: Path, text: str) -> None:
    """A file that takes its place when it is whole."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _index(record: Mapping[str, Any]) -> int:
    return record["annotations"]["provenance"]["index"]
