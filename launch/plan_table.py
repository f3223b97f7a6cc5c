"""A plan on one screen."""

from __future__ import annotations

import io
from typing import Any

from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table

from posttrain_jax.planning.chips import GIB

PARTS = ("weights", "optimiser", "gradients", "activations", "cache")
WIDTH = 128


def table(plan: dict[str, Any]) -> str:
    """Memory and time of every program, what holds it back, and the whole recipe."""
    rows = plan["programs"]
    memory = Table(box=ROUNDED, title=f"[bold]{plan['title']}[/]: compiled, not measured", title_justify="left")
    for name in ("program", "fits"):
        memory.add_column(name)
    for name in (*PARTS, "other", "GiB of a device"):
        memory.add_column(name, justify="right")
    time = Table(box=ROUNDED)
    for name in ("program", "time", "MFU", "tokens/s", "core", "compute", "HBM", "links", "calls", "chip-hours"):
        time.add_column(name, justify="left" if name == "program" else "right")
    for row in rows:
        memory.add_row(row["program"], "yes" if row["fits"] else "[red]no", *_memory(row))
        if "seconds" in row:
            time.add_row(row["program"], *_time(row))
    lines = [line for row in rows for line in _why(row)]
    if plan["chip_hours"] is not None:
        hours = plan["chip_hours"]
        lines.append(
            f"[bold]whole recipe[/] {hours:,.0f} chip-hours, {hours / plan['chips']:,.1f} hours on {plan['topology']}"
        )
    lines.append("* binds of the three rooflines; core: its instructions, as the compiler expects them")
    lines.append(f"assumed: {'; '.join(plan['assumptions'])}")
    return _render(memory, *((time,) if time.row_count else ()), *lines)


def candidates(told: dict[str, Any]) -> str:
    """What `--search` found, the best first."""
    grid = Table(box=ROUNDED, title=f"{told['topology']}, {' + '.join(told['programs'])}: compiled, not measured",
                 title_justify="left")  # fmt: skip
    for name in ("setting", "fits", "GiB", "time", "MFU", "bound by"):
        grid.add_column(name)
    for row in told["candidates"]:
        grid.add_row(
            row["setting"],
            "yes" if row["fits"] else "[red]no",
            f"{row['memory_total'] / GIB:.1f}" if row["memory_total"] else "",
            _seconds(row["seconds"]) if row["seconds"] is not None else (row["errors"] or [""])[0][:60],
            f"{row['mfu']:.1%}" if row["mfu"] is not None else "",
            row["bound_by"] or "",
        )
    return _render(grid)


def calibration(told: dict[str, Any]) -> str:
    """Estimate against measurement."""
    return "\n".join(f"{name:<24}{value}" for name, value in told.items())


def _memory(row: dict[str, Any]) -> list[str]:
    memory = row.get("memory", {})
    other = sum(size for name, size in memory.items() if name not in PARTS)
    total = f"{row['memory_total'] / GIB:.1f} of {row['hbm'] / GIB:.0f}" if memory else ""
    return [*(_gib(memory.get(name, 0.0)) for name in PARTS), _gib(other), total]


def _time(row: dict[str, Any]) -> list[str]:
    mfu = f"{row['mfu']:.1%}" if row["tokens"] else ""
    speed = f"{row['tokens_per_second']:,.0f}" if row["tokens"] else ""
    # what each would take alone; the longest binds
    roofs = [
        _seconds(seconds) + (" *" if name == row["bound_by"] else "") for name, seconds in row["rooflines"].items()
    ]
    busy = _seconds(row["core_seconds"])
    return [_seconds(row["seconds"]), mfu, speed, busy, *roofs, f"{row['calls']:,}", f"{row['chip_hours']:,.1f}"]


def _why(row: dict[str, Any]) -> list[str]:
    """The largest losses and exchanges of a program, or why there are none."""
    name = f"[bold]{row['program']}[/]"
    if "error" in row:
        return [f"{name} {row['error']}"]
    lines = [f"{name} does not fit; {row['nearest']}"] if not row["fits"] else []
    if "seconds" in row:
        lost = ", ".join(f"{loss['what']} {loss['seconds'] / row['seconds']:.0%}" for loss in row["losses"])
        sent = ", ".join(
            f"{c['kind']} over {c['axes']} {c['bytes'] / GIB:.2f} GiB"
            for c in sorted(row["collectives"], key=lambda c: -c["seconds"])[:2]
        )
        lines.append(f"{name} largest losses: {lost or 'none'}" + (f"; most sent: {sent}" if sent else ""))
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size >= 0.05 * GIB else ("<0.1" if size else "")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def _render(*parts: Any) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False, highlight=False)
    for part in parts:
        console.print(part)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]
