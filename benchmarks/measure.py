"""What the benchmarks share: the recipe, timing in turns, and a result file that tells where it was made."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "minimax_m2.py"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "transformers", "trl", "libtpu")
PACKAGES += ("triton", "flash-linear-attention", "tokamax", "jax-cuda12-plugin", "jax-cuda13-plugin")
sys.path.insert(0, str(ROOT / "launch"))


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, with ``--output`` already in it."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}.json")
    return made


def start(cores: int) -> None:
    """Confines this process to ``cores`` CPU cores and prepares JAX as ``launch`` does; call before JAX starts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["JAX_PLATFORMS"] = "cpu"
    import command_line

    command_line.prepare_jax()


def recipe(scale: str = "tiny", *overrides: str) -> Any:
    """The project's own recipe, with overrides written ``rl.prompts=8``."""
    import config_file

    from posttrain_jax.run import validate

    given = [tuple(f"config.{override}".split("=", 1)) for override in overrides]
    config, mistakes = config_file.override(RECIPE, scale, given)
    if mistakes:
        raise SystemExit("\n".join(mistakes))
    return validate.recipe_from(config)


def in_turns(
    sides: dict[str, Callable[[], Any]], repetitions: int, warmup: int = 1, unseen: int = 0
) -> dict[str, list[float]]:
    """Seconds of every repetition of every side, one after the other, the order turned round each time.

    What else the machine does then falls on all sides alike. Each call must end when its result is there. ``unseen``
    calls come before each that is timed: the threads of the side before, which spin on for milliseconds, and what it
    left in the caches then cost neither anything.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(-warmup, repetitions):
        for name in list(sides)[:: 1 if repetition % 2 else -1]:
            for _ in range(unseen):
                sides[name]()
            before = time.perf_counter()
            sides[name]()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - before)
    return seconds


def rate(amount: float, seconds: Sequence[float]) -> dict[str, Any]:
    """The median of ``amount`` a second, its quartiles, and the seconds themselves."""
    rates = [amount / s for s in seconds]
    low, _, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else rates * 3
    return {"median": statistics.median(rates), "quartiles": [low, high], "seconds": list(seconds)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times faster ours is: ratio of the median seconds, and least and largest ratio of a pair of turns."""
    pairs = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(theirs) / statistics.median(ours), "least": min(pairs), "largest": max(pairs)}


def train_command(workdir: Path, *overrides: str) -> list[str]:
    """The main job's command line; overrides are written ``rl.prompts=8``."""
    script = [sys.executable, str(ROOT / "launch" / "train.py"), f"--config={RECIPE}:tiny", f"--workdir={workdir}"]
    return script + [f"--config.{override}" for override in overrides]


def environment(cache: Path | None = None) -> dict[str, str]:
    """Environment of a child process that runs the main job on the CPU; ``cache`` holds its compiled programs."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    chosen = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_PLATFORMS": "cpu"}
    return {**os.environ, **chosen, **({"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {})}


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file that another process may be writing; none where there is no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _portable(argument: str) -> str:
    """An argument whose path, where it is absolute, is told from the project's root, or by its last name."""
    flag, equals, value = argument.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return argument
    return f"{flag}{equals}{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}"


def write(path: Path, numbers: dict[str, Any]) -> None:
    """The result file: the numbers, and when, how and on what they were measured."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *map(_portable, sys.argv[1:])]),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **installed},
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, **numbers}, indent=2) + "\n")
    print(f"written: {path}")


def put(path: Path, table: str, key: dict[str, Any], row: dict[str, Any], **facts: Any) -> None:
    """Writes one row of a result file's table at once, in the place of the row with the same ``key``."""
    rows = json.loads(path.read_text())[table] if path.exists() else []
    others = [row for row in rows if any(row[name] != value for name, value in key.items())]
    write(path, {**facts, table: [*others, {**key, **row}]})


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table; numbers to three figures."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_figures(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _figures(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def _cpu() -> str:
    try:
        found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        found = []
    return found[0].partition(":")[2].strip() if found else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit measured, marked where files differ from it."""
    try:
        ended = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return ended.stdout.strip() or "unknown"
