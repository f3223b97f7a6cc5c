"""What a person sees of a run: a header, one bar a stage, and a summary that fits one screen.

On a terminal a stage is a live bar, and under it a table of the areas' rewards where they are told. Anywhere else, and
where ``CI`` is set, it is a small table of plain lines, so that a log stays readable and free of control codes.
"""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from posttrain_jax.run.areas import Areas
from posttrain_jax.run.rules import STAGES

WIDTH = 100  # columns: of everything outside a terminal, and at most in one
LINES = 15  # plain lines that a stage prints, about
AREA_LINES = 4  # and of them, lines of the areas' rewards
TASKS = 20  # of the summary's table, side by side where two of few stages have room


# kind of stage -> metric -> its label, and how its value is written
SHOWN = {
    "sft": {
        "loss": ("loss", ".4f"),
        "grad_norm": ("grad norm", ".3f"),
        "learning_rate": ("rate", ".1e"),
        "tokens_per_second": ("tokens/s", ",.0f"),
    },
    "reward_model": {
        "loss": ("loss", ".4f"),
        "accuracy": ("in order", ".1%"),
        "margin": ("margin", ".3f"),
        "grad_norm": ("grad norm", ".3f"),
        "tokens_per_second": ("tokens/s", ",.0f"),
    },
    "dpo": {
        "loss": ("loss", ".4f"),
        "accuracy": ("in order", ".1%"),
        "margin": ("margin", ".3f"),
        "reward_chosen": ("chosen", ".3f"),
        "reward_rejected": ("rejected", ".3f"),
        "tokens_per_second": ("tokens/s", ",.0f"),
    },
    "answering": {
        "answered": ("answered", ".1%"),
        "kept": ("kept", ",.0f"),
    },
    "rl": {
        "reward": ("reward", ".3f"),
        "pass_rate": ("pass", ".1%"),
        "response_length": ("length", ".1f"),
        "entropy": ("entropy", ".3f"),
        "kl": ("KL", ".4f"),
        "clipped": ("clipped", ".2%"),
        "tokens_per_second": ("tokens/s", ",.0f"),
    },
}


def count(number: float) -> str:
    """A count in the unit that reads best: ``1.8 M``."""
    for unit in ("", " k", " M", " B"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"


def duration(seconds: float) -> str:
    """Seconds as ``0:42``, ``12:03`` or ``1:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def one_line(text: Any) -> str:
    """Text that cannot break a line or steer a terminal, whoever wrote it: whitespace collapsed, the rest printable."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(text).split()))


class Bar:
    """A stage's progress: how far, how fast, and the numbers of the last step.

    It counts in steps, or in tokens where a budget of tokens ends the stage.
    """

    def __init__(self, name: str, total: int, start: int, kind: str = "", unit: str = "step"):
        self.name, self.total, self.done, self.unit = name, total, start, unit
        self.shown = SHOWN.get(kind or name, SHOWN["sft"])
        self.numbers: Mapping[str, float] = {}
        self.areas = Areas()
        self.began = time.monotonic()
        self._first: tuple[int, float] | None = None

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        """Step ``step`` is done; ``numbers`` may hold more than is shown, or less."""
        self.done = step if self.unit == "step" else min(int(numbers["used_tokens"]), self.total)
        self._first = self._first or (self.done, time.monotonic())
        self.numbers = numbers
        self.areas.update(numbers)

    def elapsed(self) -> str:
        """Time since the stage began in this process."""
        return duration(time.monotonic() - self.began)

    def left(self) -> str:
        """Time to the end at the pace since the first step; that one is left out because it compiles."""
        if self.done >= self.total:
            return duration(0)
        if self._first is None or self.done == self._first[0]:
            return "–"
        done, began = self._first
        return duration((time.monotonic() - began) / (self.done - done) * (self.total - self.done))

    def place(self) -> str:
        """How far of how much."""
        if self.unit == "step":
            return f"{self.done:>{len(str(self.total))}}/{self.total}"
        return f"{count(self.done)}/{count(self.total)}"

    def values(self) -> list[str]:
        """The shown numbers, written out; a dash for one that the step did not report."""
        return [
            format(self.numbers[key], form) if key in self.numbers else "–" for key, (_, form) in self.shown.items()
        ]


class LiveBar(Bar):
    """What a terminal redraws: the bar with its times, the numbers beside their labels, and the areas' rewards."""

    def __rich__(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2), expand=True)
        for ratio in (None, 1, None, None, None):
            grid.add_column(ratio=ratio, no_wrap=True)
        grid.add_row(
            Text(self.name, "bold"),
            ProgressBar(total=max(self.total, 1), completed=self.done, complete_style="cyan", finished_style="green"),
            Text(self.place()),
            Text(self.elapsed(), "dim"),
            Text(f"{self.left()} left" if self.done < self.total else "done", "dim"),
        )
        return Group(grid, self._numbers(), self.areas)

    def _numbers(self) -> Text:
        line = Text(no_wrap=True, overflow="ellipsis")
        if not self.numbers:
            return line.append("compiling and running the first step", "dim")
        for (label, _), value in zip(self.shown.values(), self.values(), strict=True):
            line.append("  " if line else "").append(label, "dim").append(f" {value}")
        return line


class PlainBar(Bar):
    """A table that grows by a line now and then, under one line of column names."""

    def __init__(self, name: str, total: int, start: int, kind: str, unit: str, console: Console):
        super().__init__(name, total, start, kind, unit)
        self.console = console
        self._print(f"{name} {unit}", [label for label, _ in self.shown.values()], "elapsed", "left")

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        """As `Bar.update`; prints the first step, every few, and the last."""
        first, before = self._first is None, self.done
        super().update(step, numbers)
        if first or self._passed(before, LINES):
            self._print(self.place().strip(), self.values(), self.elapsed(), self.left())
        if self.areas and self._passed(before, AREA_LINES):
            self.console.print(Text(f"{'':>12}  {self.areas.line()}"), soft_wrap=True)

    def _passed(self, before: int, parts: int) -> bool:
        """Whether the end was reached, or that of one of so many parts."""
        part = max(1, math.ceil(self.total / parts))
        return self.done >= self.total or self.done // part > before // part

    def _print(self, step: str, cells: list[str], elapsed: str, left: str) -> None:
        line = f"{step:>12}" + "".join(f"{cell:>10}" for cell in (*cells, elapsed, left))
        self.console.print(Text(line), soft_wrap=True)


class Screen:
    """Where a run speaks to whoever watches.

    Args:
      quiet: prints nothing; for every process but the first.
      file: where to print; by default standard output.
    """

    def __init__(self, quiet: bool = False, file: TextIO | None = None):
        stream = file or sys.stdout
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal shows "?" instead of ending the run
        self.live = stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI") and not quiet
        self.console = Console(
            file=file,
            quiet=quiet,
            force_terminal=self.live,
            force_jupyter=False,
            width=None if self.live else WIDTH,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def say(self, text: str) -> None:
        """A line, above the bar if there is one."""
        self.console.print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that should not be missed."""
        self.console.print(Text("warning: ", "bold yellow").append(str(text), "not bold"), soft_wrap=True)

    def header(self, facts: Mapping[str, Any]) -> None:
        """What is about to run: ``recipe``, ``devices``, ``mesh`` (text, or sizes by axis), ``parameters``, ``active``,
        ``stages``, ``workdir``; whichever are there, and others as they are."""
        rows = _facts(facts)
        if not self.live:
            for name, value in rows.items():
                self.console.print(f"{name:<12}{value}", soft_wrap=True)
            return
        grid = _labelled({name: Text(value) for name, value in rows.items()})
        panel = Panel(grid, box=ROUNDED, title="posttrain_jax", title_align="left", border_style="cyan", padding=(0, 1))
        self.console.print(panel, width=self._width())

    @contextmanager
    def stage(self, name: str, total: int, start: int = 0, kind: str = "", unit: str = "step") -> Iterator[Bar]:
        """A stage of ``total`` steps, ``start`` of them done already; yields what takes its `Bar.update`.

        Its ``kind``, by default its name, says which numbers are shown. With tokens as the ``unit``, the bar goes by
        the ``used_tokens`` of its updates.
        """
        if not self.live:
            yield PlainBar(name, total, start, kind, unit, self.console)
            return
        bar = LiveBar(name, total, start, kind, unit)
        with Live(bar, console=self.console, refresh_per_second=4):
            yield bar

    def summary(self, summary: Mapping[str, Any]) -> None:
        """What came of the run: what summary.json holds, and the path ``report``; parts may be missing."""
        parts: list[RenderableType] = ["", Rule("held-out pass@1", characters="─", style="cyan" if self.live else "")]
        parts += _accuracies(summary.get("heldout") or {})
        parts += _pairs(summary.get("pair_accuracy") or {})
        parts += _tasks(summary.get("per_task") or {})
        samples = list(summary.get("samples") or [])
        for sample in samples[:1] + samples[1:][-1:]:
            parts += ["", _answer(sample)]
        parts += ["", _closing(summary)]
        self.console.print(Group(*parts), width=self._width())

    def _width(self) -> int:
        return min(WIDTH, self.console.width)


def _facts(facts: Mapping[str, Any]) -> dict[str, str]:
    rows = dict(facts)
    if "parameters" in rows:
        active = f", {count(rows.pop('active'))} active on a token" if "active" in rows else ""
        rows["parameters"] = f"{count(rows['parameters'])}{active}"
    if isinstance(rows.get("mesh"), Mapping):
        rows["mesh"] = ", ".join(f"{axis} {size}" for axis, size in rows["mesh"].items())
    if "stages" in rows:
        rows["stages"] = " → ".join(rows["stages"]) or "none"
    if "workdir" in rows:
        rows["results"] = rows.pop("workdir")
    return {name: str(value) for name, value in rows.items()}


def _accuracies(heldout: Mapping[str, float]) -> list[RenderableType]:
    line, before = Text(), None
    for stage, value in heldout.items():
        line.append("   →   " if line else "", "dim")
        told = stage.upper() if stage in STAGES else stage  # a kind in capitals, a phase as it is called
        line.append(stage if stage == "base" else f"after {told}", "dim").append(f" {value:.1%}", "bold")
        if before is not None:
            gain = 100 * (value - before)
            line.append(f" ({gain:+.1f})", "green" if gain > 0 else "red" if gain < 0 else "dim")
        before = value
    return [line] if heldout else [Text("no evaluation yet", "dim")]


def _pairs(accuracy: Mapping[str, float]) -> list[RenderableType]:
    """How well preference pairs were put in order, which is no pass@1 and has a line of its own."""
    return [
        Text(f"{stage.replace('_', ' ')} ", "dim").append(f"{share:.1%}", "bold").append(" of held-out pairs in order")
        for stage, share in accuracy.items()
    ]


def _tasks(per_task: Mapping[str, Mapping[str, float]]) -> list[RenderableType]:
    stages = list(per_task)
    if not stages:
        return []
    tasks = sorted({task for scores in per_task.values() for task in scores})
    sides = 2 if 20 + sum(max(len(stage), 4) + 2 for stage in stages) <= WIDTH // 2 else 1
    rows = min(TASKS // sides, math.ceil(len(tasks) / sides))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for side in range(sides):
        table.add_column(("" if not side else "   ") + "task", no_wrap=True, max_width=26, overflow="ellipsis")
        for stage in stages:
            table.add_column(stage, justify="right")

    def cells(index: int, side: int) -> list[RenderableType]:
        if index >= len(tasks):
            return [""] * (1 + len(stages))
        scores = [per_task[stage].get(tasks[index]) for stage in stages]
        return [("   " if side else "") + tasks[index], *("–" if s is None else f"{s:.0%}" for s in scores)]

    for row in range(rows):
        table.add_row(*(cell for side in range(sides) for cell in cells(row + side * rows, side)))
    more = len(tasks) - sides * rows
    return ["", table] + ([Text(f"and {more} more tasks in the report", "dim")] if more > 0 else [])


def _answer(sample: Mapping[str, Any]) -> RenderableType:
    right = bool(sample.get("correct"))
    question = Text(f"{one_line(sample.get('task', ''))}: ", "bold").append(
        one_line(sample.get("prompt", "")), "not bold"
    )
    answer = Text(one_line(sample.get("answer") or "none"), "bold")
    if right:
        answer.append("  correct", "not bold green")
    else:
        answer.append(f"  incorrect, expected {one_line(sample.get('expected', ''))}", "not bold red")
    rows = {"question": question, "thinking": Text(one_line(sample.get("reasoning", "")), "italic"), "answer": answer}
    for text in rows.values():
        text.no_wrap, text.overflow = True, "ellipsis"
    return _labelled(rows)


def _closing(summary: Mapping[str, Any]) -> RenderableType:
    times = [f"{stage} {duration(value)}" for stage, value in (summary.get("seconds") or {}).items()]
    if summary.get("first_step_seconds") is not None:
        times.append(f"first step after {duration(summary['first_step_seconds'])}")
    rows = {"time": " · ".join(times), "results": summary.get("workdir"), "report": summary.get("report")}
    return _labelled({name: Text(str(value)) for name, value in rows.items() if value})


def _labelled(rows: Mapping[str, Text]) -> RenderableType:
    """Rows under one another, each behind its name."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(min_width=8, no_wrap=True, style="dim")
    grid.add_column(overflow="fold")  # a path stays whole, to be copied
    for name, text in rows.items():
        grid.add_row(name, text)
    return grid
