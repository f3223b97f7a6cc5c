"""How the rewards of a run's areas stand, as a table that a terminal redraws in place, or as one line of a log."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

WINDOW = 20  # steps that a mean and a trend look back on
ROWS = 12  # areas shown at most
ABOVE = 6  # lines of a terminal that are left to others
LEVELS = "▁▂▃▄▅▆▇█"
PREFIX = "reward/"


class Areas:
    """The latest rewards of each area, out of the metrics ``reward/AREA``, ``pass_rate/AREA`` and ``share/AREA``.

    Rows keep their order, and columns their widths, so that nothing moves but the numbers. An area that a step did not
    ask keeps its row, with a dash for what it earned.
    """

    def __init__(self, window: int = WINDOW):
        self.window = window
        self._rewards: dict[str, deque[float]] = {}
        self._now: Mapping[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._rewards)

    def update(self, numbers: Mapping[str, float]) -> None:
        """Takes a step's metrics."""
        self._now = numbers
        for key, value in numbers.items():
            if key.startswith(PREFIX):
                self._rewards.setdefault(key.removeprefix(PREFIX), deque(maxlen=self.window)).append(value)
        self._rewards = dict(sorted(self._rewards.items()))

    def line(self) -> str:
        """Every area's reward, its mean and the trend: ``logic 0.500 (0.421, +0.103)``."""
        return f"reward (mean of {self.window} steps, its change): " + ", ".join(
            f"{name} {self._shown(PREFIX, name)} ({_mean(seen):.3f}, {_signed(self._change(name))})"
            for name, seen in self._rewards.items()
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self:
            return
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("area", no_wrap=True, min_width=16, max_width=28, overflow="ellipsis")
        for title in ("reward", f"mean of {self.window}", "change", "pass", "prompts"):
            table.add_column(title, justify="right", no_wrap=True, min_width=7)
        if not options.ascii_only:
            table.add_column("trend", no_wrap=True, min_width=self.window)
        names = list(self._rewards)
        room = max(1, min(ROWS, console.height - ABOVE))
        for name in names[:room]:
            change = self._change(name)
            cells = [
                Text(_short(name)),
                self._shown(PREFIX, name),
                f"{_mean(self._rewards[name]):.3f}",
                Text(_signed(change), "green" if change > 0 else "red" if change < 0 else "dim"),
                self._shown("pass_rate/", name, ".0%"),
                self._shown("share/", name, ".0%"),
            ]
            table.add_row(*cells, *([] if options.ascii_only else [Text(sparkline(self._rewards[name]), "cyan")]))
        yield table
        if len(names) > room:
            yield Text(f"and {len(names) - room} more areas in metrics.jsonl", "dim")

    def _shown(self, prefix: str, name: str, form: str = ".3f") -> str:
        return format(self._now[prefix + name], form) if prefix + name in self._now else "–"

    def _change(self, name: str) -> float:
        """From the older half of the window to the newer; of a single step nan."""
        seen = list(self._rewards[name])
        half = len(seen) // 2
        return _mean(seen[-half:]) - _mean(seen[:half]) if half else math.nan


def sparkline(values: Sequence[float]) -> str:
    """The values as blocks, the lowest of them lowest; a dot for one that is not finite.

    >>> sparkline([0.0, 1.0, 7.0])
    '▁▂█'
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(LEVELS[round((v - low) * scale)] if math.isfinite(v) else "·" for v in values)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _signed(change: float) -> str:
    return "–" if math.isnan(change) else f"{change:+.3f}"


def _short(name: str) -> str:
    """Of a world that a file makes, the kind and the file's own name."""
    kind, _, path = name.partition(":")
    return f"{kind}:{path.rpartition('/')[2]}" if path else name
