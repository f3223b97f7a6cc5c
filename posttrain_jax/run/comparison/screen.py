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
    ("heldout", "held out %", ".1f", 100.0),
    ("tokens_to_common", "k tokens to common", ",.0f", 1e-3),
    ("reward", "reward", ".3f", 1.0),
    ("response_length", "length", ".1f", 1.0),
    ("entropy", "entropy", ".3f", 1.0),
    ("kl", "KL", ".4f", 1.0),
    ("seconds_per_step", "s a step", ".2f", 1.0),
    ("steps", "steps", ".0f", 1.0),
)


def plan(comparison: Comparison) -> None:
    """What is the same in all runs, and what is each recipe's own."""
    fixed = Table("fixed by the comparison", "", box=None, title_justify="left", pad_edge=False)
    for name, value in comparison.fixed().items():
        fixed.add_row(name, value)
    names = list(comparison.recipes)
    own = Table("each recipe's own", *names, box=None, pad_edge=False)
    for key, values in comparison.own().items():
        own.add_row(key, *(values[name] for name in names))
    behind = comparison.behind()
    own.add_row("left behind", *(", ".join(behind[name]) or "–" for name in names))
    told = [Text("All other keys of rl, optimizer and router are alike.")]
    told += [Text(f"{name} does here what {twin} does, and is not run.") for name, twin in comparison.twins().items()]
    Screen().console.print(Group(fixed, "", own, "", *told))


def results(found: Mapping[str, Any]) -> None:
    """A row a recipe: means over its finished runs, with the spread between seeds."""
    start = ", ".join(f"{stage} {value:.1%}" for stage, value in found["base"]["heldout"].items())
    table = Table("recipe", *(title for _, title, _, _ in COLUMNS), box=None, pad_edge=False)
    for name, recipe in found["recipes"].items():
        twin = recipe["same_run_as"]
        cells = (cell(recipe["mean"].get(key), form, scale) for key, _, form, scale in COLUMNS)
        table.add_row(f"{name} (as {twin})" if twin else name, *cells)
    seeds, common = ", ".join(map(str, found["seeds"])), found["common_level"]
    told = f"held out before: {start or 'not measured'}; seeds {seeds}"
    told += f"; common: {common:.1%}, which the weakest run ends with" if common is not None else ""
    Screen().console.print(Group("", Text(told), table))


def cell(number: Mapping[str, Any] | None, form: str, scale: float = 1.0) -> str:
    """A mean with its spread, or a dash."""
    if not number:
        return "–"
    spread = "" if number["spread"] is None else f" ± {number['spread'] * scale:{form}}"
    return f"{number['mean'] * scale:{form}}{spread}"
