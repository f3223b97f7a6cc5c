"""From a configuration to a `Recipe`: every mistake found at once, before any device starts.

Each mistake is one sentence that names the key, the bad value and the nearest good one. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from posttrain_jax.errors import UserError
from posttrain_jax.run import rules
from posttrain_jax.run.nearest import nearest
from posttrain_jax.run.recipe import Recipe, flatten, settings


class InvalidRecipe(UserError):
    """A configuration with mistakes; ``problems`` has one sentence for each."""

    def __init__(self, problems: Iterable[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def recipe_from(config: ConfigDict | Mapping[str, Any]) -> Recipe:
    """The typed recipe that a configuration states; a key it leaves out keeps its default.

    Raises:
      InvalidRecipe: with every mistake found.
    """
    recipe, found = read(config)
    if found:
        raise InvalidRecipe(found)
    return recipe


def read(config: ConfigDict | Mapping[str, Any]) -> tuple[Recipe, list[str]]:
    """The recipe and its mistakes; a field with a mistake holds its default.

    Rules that bind several fields are judged only where each of their fields is sound by itself.
    """
    recipe, found = structure(config)
    problems = list(found.values())
    for keys, problem in rules.broken(recipe):
        if not any(bad == key or bad.startswith(f"{key}.") for bad in found for key in keys):
            problems.append(problem)
    return recipe, problems


def structure(config: ConfigDict | Mapping[str, Any]) -> tuple[Recipe, dict[str, str]]:
    """The recipe and, by dotted path, the mistakes of single fields: unknown keys, types, bounds and choices."""
    found: dict[str, str] = {}
    tree = config.to_dict() if isinstance(config, ConfigDict) else config
    return _section(Recipe, tree, "", found), found


def unknown_key(path: str) -> str:
    """The sentence for a dotted path that is no setting: the nearest one, and the keys that stand beside it."""
    kind, section = Recipe, ""
    for part in path.split(".")[:-1]:
        inner = get_type_hints(kind).get(part)
        if not (isinstance(inner, type) and dataclasses.is_dataclass(inner)):
            break
        kind, section = inner, f"{section}.{part}"
    beside = ", ".join(field.name for field in dataclasses.fields(kind))
    known = [known for known, _, _ in settings()]
    sections = {name.rpartition(".")[0] for name in known} - {""}
    good = nearest(path, [*known, *sorted(sections)])
    return f"config.{path}: no such key; the nearest is config.{good} (config{section} has {beside})"


def workdir_problem(workdir: Path) -> str | None:
    """Why nothing can be written in ``workdir``, or None; creates nothing."""
    place = workdir
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"--workdir={workdir}: {place} is a file, not a directory"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"--workdir={workdir}: no permission to write in {place}; choose another --workdir"
    return None


def differences(saved: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Where a stored configuration asks for another run than ``recipe``, one sentence a key.

    Keys under ``run`` say how a run is kept, and those under ``mesh`` (and ``rollout.sharded``) where it computes, not
    what, so they may differ: another mesh gives the same numbers but for rounding. A key the stored configuration does
    not have counts as its default.
    """
    defaults = flatten(dataclasses.asdict(Recipe()))
    before = defaults | flatten(saved)
    after = flatten(dataclasses.asdict(recipe))
    found = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path, "absent"), after.get(path, "absent")
        old = tuple(old) if isinstance(old, list) else old
        if old != new and not path.startswith(("run.", "mesh.", "rollout.sharded")):
            found.append(f"config.{path} was {old!r} and is now {new!r}")
    return found


def _section(kind: type, tree: Any, prefix: str, found: dict[str, str]) -> Any:
    """Builds one dataclass from a mapping, noting mistakes by dotted path in ``found``."""
    hints = get_type_hints(kind)
    if not isinstance(tree, Mapping):
        found[prefix.rstrip(".")] = f"config.{prefix.rstrip('.')}={tree!r}: a section of keys, not a value"
        return kind()
    for key in tree:
        if key not in hints:
            found[f"{prefix}{key}"] = unknown_key(f"{prefix}{key}")
    values = {}
    for field in dataclasses.fields(kind):
        if field.name not in tree:
            continue
        path, inner, value = prefix + field.name, hints[field.name], tree[field.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            values[field.name] = _section(inner, value, f"{path}.", found)
            continue
        if inner is tuple and isinstance(value, list):
            value = tuple(value)
        if inner is float and type(value) is int:
            value = float(value)
        problem = _value_problem(inner, value, field.metadata)
        if problem:
            found[path] = f"config.{path}={value!r}: {problem}"
        else:
            values[field.name] = value
    return kind(**values)


def _value_problem(kind: type, value: Any, limits: Mapping[str, Any]) -> str | None:
    """Why a value cannot stand in a field by itself, or None."""
    if type(value) is not kind:
        return f"expected {kind.__name__}, not {type(value).__name__}"
    if kind is tuple and not all(isinstance(item, str) for item in value):
        return "expected a tuple of names"
    if kind is float and not math.isfinite(value):
        return "must be a finite number"
    low, high, choices = limits["minimum"], limits["maximum"], limits["choices"]
    if low is not None and value < low:
        return f"must be at least {low}"
    if high is not None and value > high:
        return f"must be at most {high}"
    if choices and value not in choices:
        return f"must be one of {', '.join(choices)}; the nearest is {nearest(str(value), choices)}"
    return None
