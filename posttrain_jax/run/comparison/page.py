"""A comparison as one page, compare.html, which needs no network and no other file.

First what the recipes came to, then a section for each component: what it is in each recipe here, what its maker
published, and the curves that show what it does. No script: curves are SVG, and whatever comes from runs is escaped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from posttrain_jax.run.comparison import published
from posttrain_jax.run.comparison.components import COMPONENTS
from posttrain_jax.run.comparison.screen import COLUMNS, cell
from posttrain_jax.run.report import ASSETS, CURVES, Curve, digest
from posttrain_jax.run.screen import count

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 180, 44, 10, 8, 22
COLOURS = 6  # of lines, in compare.css
DRAWN = {curve.metric: curve for curve in (*CURVES, Curve("rounds", "Rounds of sampling", "a step"))}


def write(path: Path, found: Mapping[str, Any]) -> Path:
    """Writes what `results.read` tells; the page is whole or not there."""
    names = list(found["recipes"])
    done = [sum(run["finished"] for run in recipe["runs"]) for recipe in found["recipes"].values()]
    style = "".join((ASSETS / name).read_text("utf-8") for name in ("report.css", "compare.css"))
    whole = sum(done) == len(names) * len(found["seeds"])
    parts = {
        "style": style,
        "policy": f"default-src 'none'; style-src '{digest(style)}'; base-uri 'none'; form-action 'none'",
        "state": "good" if whole else "",
        "status": "finished" if whole else f"{sum(done)} of {len(names) * len(found['seeds'])} runs",
        "title": escape(" · ".join(names)),
        "facts": _pairs(found["base"]["fixed"]),
        "legend": "".join(
            f'<span><i class="key line{i % COLOURS}"></i>{escape(name)}</span>' for i, name in enumerate(names)
        ),
        "results": _results(found),
        "components": "".join(_component(key, found) for key in COMPONENTS),
        "own": _own(found),
    }
    page = re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], (ASSETS / "compare.html").read_text("utf-8"))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(page, "utf-8")
    partial.replace(path)
    return path


def _results(found: Mapping[str, Any]) -> str:
    """What each recipe came to, beside the scores of its maker's released model, and the curves of what is held out."""
    start = ", ".join(f"{escape(stage)} {100 * v:.1f} %" for stage, v in found["base"]["heldout"].items())
    told = found["components"][published.RESULT]
    rows = []
    for name, recipe in found["recipes"].items():
        cells = [cell(recipe["mean"].get(key), form, scale) for key, _, form, scale in COLUMNS]
        twin = f" <small>as {escape(recipe['same_run_as'])}</small>" if recipe["same_run_as"] else ""
        rows.append(
            f"<tr><td>{escape(name)}{twin}</td>{''.join(f'<td>{escape(c)}</td>' for c in cells)}"
            f'<td class="said">{_said(told[name])}</td></tr>'
        )
    heads = "".join(f"<th>{escape(title)}</th>" for _, title, _, _ in COLUMNS)
    common = found["common_level"]
    notes = [f"Before: {start}." if start else ""]
    notes += [f"Common: {100 * common:.1f} %, with which the weakest run ends."] if common is not None else []
    notes += ["Means over seeds, ± their deviation." if len(found["seeds"]) > 1 else "One seed: no spread is known."]
    return (
        f'<div class="card scroll"><table><thead><tr><th>Recipe</th>{heads}<th class="said">The released model,'
        f" as published: another model, other problems</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="note">{" ".join(notes)}</p>{_charts(("heldout",), found)}'
    )


def _component(key: str, found: Mapping[str, Any]) -> str:
    component, rows = COMPONENTS[key], []
    told = found["components"][key]
    one = len(told) > 1 and all(each["same_as"] for each in list(told.values())[1:])
    for name, each in told.items():
        same = f'<span class="note">as {escape(each["same_as"])}</span>' if each["same_as"] else escape(each["here"])
        rows.append(f'<tr><td>{escape(name)}</td><td class="said">{same}</td><td class="said">{_said(each)}</td></tr>')
    alike = "<small>alike in all, so no difference below is its doing</small>" if one else ""
    return (
        f"<section><h2>{escape(component.title)}{alike}</h2>"
        '<div class="card scroll"><table><thead><tr><th>Recipe</th><th class="said">Here</th>'
        f'<th class="said">Published</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f"{_charts(component.metrics, found)}</section>"
    )


def _said(told: Mapping[str, str | None]) -> str:
    if told["published"] is None:
        return "–"
    source = f" <small>{escape(told['source'])}</small>" if told["source"] else ""
    return escape(told["published"]) + source


def _own(found: Mapping[str, Any]) -> str:
    names = list(found["recipes"])
    keys = list(next(iter(found["recipes"].values()))["own"])
    rows = [[key, *(found["recipes"][name]["own"][key] for name in names)] for key in keys]
    rows.append(["left behind", *(", ".join(found["recipes"][name]["left_behind"]) or "–" for name in names)])
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(value))}</td>' for value in row)}</tr>" for row in rows)
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("", *names))
    return f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _pairs(facts: Mapping[str, str]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())


def _charts(metrics: Sequence[str], found: Mapping[str, Any]) -> str:
    charts = "".join(chart for metric in metrics for chart in _chart(DRAWN[metric], found))
    return f'<div class="charts">{charts}</div>' if charts else ""


def _chart(curve: Curve, found: Mapping[str, Any]) -> Iterator[str]:
    """One metric over tokens, a line a recipe; nothing where no run has it."""
    lines = {
        i: (name, recipe["curves"][curve.metric])
        for i, (name, recipe) in enumerate(found["recipes"].items())
        if curve.metric in recipe["curves"]
    }
    if not lines:
        return
    values = [value * curve.scale for _, line in lines.values() for value in line["values"]]
    low, high = min(*values, 0.0) if min(values) < 0.6 * max(values) else min(values), max(values)
    high = high if high > low else low + 1.0
    most = max(line["tokens"][-1] for _, line in lines.values())

    def x(tokens: float) -> float:
        return LEFT + tokens / max(most, 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    marks = "".join(
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>'
        for v in (low, (low + high) / 2, high)
    )
    marks += "".join(
        f'<text x="{x(t):.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}">{count(t)}</text>'
        for t, anchor in ((0, "middle"), (most / 2, "middle"), (most, "end"))
    )
    drawn = ""
    for i, (name, line) in lines.items():
        points = zip(line["tokens"], line["values"], strict=True)
        path = "L".join(f"{x(t):.1f} {y(v * curve.scale):.1f}" for t, v in points)
        ends = f"{line['values'][0] * curve.scale:.4g} to {line['values'][-1] * curve.scale:.4g}"
        drawn += f'<path class="line{i % COLOURS}" d="M{path}"><title>{escape(name)}: {ends}</title></path>'
    yield (
        f'<figure class="card chart"><header><h3>{escape(curve.title)}</h3><span>{escape(curve.unit)}</span></header>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(curve.title)} over tokens">'
        f"{marks}{drawn}</svg></figure>"
    )
