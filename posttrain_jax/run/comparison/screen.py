"""A comparison on the screen: what it is before it begins, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from posttrain_jax.run.comparison.plan import Comparison
from posttrain_jax.run.screen import Screen

# what is shown of a recipe: the number's name, its column, its form, and what it is multiplied by
COLUMNS = (
    ("heldout_rl", "held out %", ".1f", 100.0),
    ("reward", "reward", ".3f", 1.0),
    ("response_length", "tokens an answer", ".1f", 1.0),
    ("entropy", "entropy", ".3f", 1.0),
    ("kl", "KL", ".4f", 1.0),
    ("clipped", "clipped %", ".2f", 100.0),
    ("seconds_per_step", "s a step", ".2f", 1.0),
    ("steps", "steps", ".0f", 1.0),
    ("tokens", "tokens", ",.0f", 1.0),
)


def plan(comparison: Comparison) -> None:
    """What is the same in all runs, and what is each recipe's own."""
    fixed = Table("fixed by the comparison", "", box=None, title_justify="left", pad_edge=False)
    for name, value in comparison.fixed().items():
        fixed.add_row(name, value)
    names = list(comparison.recipes)
    own = Table("each recipe's own", *names, box=None, pad_edge=False)
    for key, values in comparison.own().items():
        own.add_row(key, *(str(values[name]) for name in names))
    behind = comparison.behind()
    own.add_row("left behind", *(", ".join(behind[name]) or "–" for name in names))
    Screen().console.print(Group(fixed, "", own, "", Text("All other keys of rl, optimizer and router are alike.")))


def results(found: Mapping[str, Any]) -> None:
    """A row a recipe: means over its finished runs, with the spread between seeds."""
    start = ", ".join(f"{stage} {value:.1%}" for stage, value in found["base"]["heldout"].items())
    table = Table("recipe", *(title for _, title, _, _ in COLUMNS), box=None, pad_edge=False)
    for name, recipe in found["recipes"].items():
        table.add_row(name, *(cell(recipe["mean"].get(key), form, scale) for key, _, form, scale in COLUMNS))
    seeds = ", ".join(map(str, found["seeds"]))
    Screen().console.print(Group("", Text(f"held out before: {start or 'not measured'}; seeds {seeds}"), table))


def cell(number: Mapping[str, Any] | None, form: str, scale: float = 1.0) -> str:
    """A mean with its spread, or a dash."""
    if not number:
        return "–"
    spread = "" if number["spread"] is None else f" ± {number['spread'] * scale:{form}}"
    return f"{number['mean'] * scale:{form}}{spread}"
