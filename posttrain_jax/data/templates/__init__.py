"""Every shape of training data that can be read, and how one is recognised.

``read(value)`` finds the template whose fields a record has, by their names or else by the parts that synonymous names
play, and translates it. A record may name its template itself: ``{"template": "T18", ...}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from posttrain_jax.data.records import MARK, Record, nearest, type_name
from posttrain_jax.data.templates import conversations, glm_4_6, kimi_k2, minimax_m2, pairs
from posttrain_jax.data.templates.template import ANNOTATIONS, PART, Template
from posttrain_jax.data.templates.translation import record_of

TEMPLATES = {
    template.name: template
    for room in (conversations, pairs, kimi_k2, glm_4_6, minimax_m2)
    for template in room.TEMPLATES
}
NAMES = sorted({*PART, *ANNOTATIONS, "template", *(name for each in TEMPLATES.values() for name in each.fields)})
PINNED = "template"
BESIDE = {"reasoning", "tools", "mode"}  # parts that any template with an answer may have


class Reading(NamedTuple):
    """A record that was read, and a line for each thing that was mended or taken by default."""

    record: Record
    notes: list[str]


def read(value: Any) -> Reading:
    """The canonical record that a decoded JSON value stands for.

    Raises:
      ValueError: no template has its fields, or one of them cannot be read; in one line, with the nearest good name.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object, found {type_name(value)}")
    notes: list[str] = []
    fields = value if MARK in value else plainly_named(value, notes)
    template = recognised(fields)
    if fields.get(PINNED) == template.name != MARK:
        fields = {name: inner for name, inner in fields.items() if name != PINNED}
    try:
        if template.translate is not None:
            record = template.translate(fields, notes)
            if unknown := [name for name in fields if name not in template.fields and name not in ANNOTATIONS]:
                record.annotations.update({name: fields[name] for name in unknown})
                notes += [kept(name, template) for name in unknown]
        else:
            record = by_parts(template, fields, notes)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return Reading(record, notes)


def plainly_named(value: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The fields in lower case with underscores, those that are null left out."""
    fields: dict[str, Any] = {}
    for name, inner in value.items():
        plain = name.strip().lower().replace(" ", "_").replace("-", "_")
        if plain in fields:
            raise ValueError(f"field {plain!r} is given twice")
        if inner is None:
            notes.append(f"field {name!r} is null and was left out")
        else:
            fields[plain] = inner
    return fields


def recognised(fields: Mapping[str, Any]) -> Template:
    """The template that the fields name, or else the one that they fit best; of equals the first.

    Raises:
      ValueError: there is none; names the nearest.
    """
    if MARK in fields:
        return TEMPLATES[MARK]
    name = fields.get(PINNED)
    if isinstance(name, str) and (name in TEMPLATES or re.fullmatch(r"[tT]\W*\d+", name)):
        if name not in TEMPLATES:
            raise ValueError(f"template {name!r:.80} is unknown{nearest(name.upper(), TEMPLATES, cutoff=0.0)}")
        template = TEMPLATES[name]
        parts = {field: PART.get(field, "") for field in fields if field != PINNED}
        if template.fit(fields) <= 0 and template.fit_parts(parts) <= 0:
            missing = ", ".join(name for name in template.needs if name not in fields)
            raise ValueError(f"template {name} also needs {missing}{misnamed(fields)}")
        return template
    best = max(TEMPLATES.values(), key=lambda template: template.fit(fields))
    if best.fit(fields) > 0:
        return best
    parts = {field: PART[field] for field in fields if field in PART}
    best = max(TEMPLATES.values(), key=lambda template: template.fit_parts(parts))
    if best.fit_parts(parts) > 0:
        return best
    found = ", ".join(fields) or "none"
    raise ValueError(f"no template has these fields; found fields: {found:.200}{misnamed(fields) or lacking(fields)}")


def by_parts(template: Template, fields: Mapping[str, Any], notes: list[str]) -> Record:
    """The record of a template that is translated by the parts of its fields."""
    parts: dict[str, tuple[str, Any]] = {}
    annotations: dict[str, Any] = {}
    exact = [name for name in fields if name in template.fields]
    taken = {template.fields[name] for name in exact}
    used = set(template.fields.values()) | (set() if "chosen" in template.needs.values() else BESIDE)
    for name in (*exact, *(name for name in fields if name not in exact)):
        part = template.fields.get(name) or ("annotation" if name in ANNOTATIONS else PART.get(name))
        if part is None or part == "annotation" or (part in taken and name not in exact) or part not in used:
            annotations[name] = fields[name]
            if part != "annotation":
                notes.append(kept(name, template))
            continue
        if name not in exact:
            notes.append(f"{name!r} was taken for the {part}")
        if part in parts:
            raise ValueError(f"fields {parts[part][0]!r} and {name!r} both give the {part}")
        parts[part] = name, fields[name]
    return record_of(template, parts, annotations, notes)


def kept(name: str, template: Template) -> str:
    """A note on a field that a template does not know."""
    near = nearest(name, [each for each in template.fields if each != name])
    return f"{template.name} has no field {name!r}; it was kept as an annotation{near}"


def misnamed(fields: Mapping[str, Any]) -> str:
    """Which fields look like misspelt ones, as the end of an error."""
    for name in fields:
        if name not in NAMES and (near := nearest(name, NAMES)):
            return f" ({name!r}{near})".replace("; did", ": did")
    return ""


def lacking(fields: Mapping[str, Any]) -> str:
    """What the template with most of these fields needs besides, as the end of an error."""
    most = max(TEMPLATES.values(), key=lambda template: sum(name in template.needs for name in fields))
    if not any(name in most.needs for name in fields):
        return "; expected messages, or a prompt and its response"
    return f"; {most.name} also needs {', '.join(name for name in most.needs if name not in fields)}"


__all__ = ["TEMPLATES", "Reading", "Template", "read"]
