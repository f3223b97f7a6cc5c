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
from posttrain_jax.run import phases, rules
from posttrain_jax.run.nearest import nearest
from posttrain_jax.run.phases import SECTIONS
from posttrain_jax.run.recipe import Phases, Recipe, changed, flatten, settings

_LIMITS: dict[str, Any] = {"minimum": None, "maximum": None, "choices": ()}  # none


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
    for keys, problem in (*rules.broken(recipe), *phases.broken(recipe)):
        if not any(bad == key or bad.startswith(f"{key}.") for bad in found for key in keys):
            problems.append(problem)
    return recipe, problems


def structure(config: ConfigDict | Mapping[str, Any]) -> tuple[Recipe, dict[str, str]]:
    """The recipe and, by dotted path, the mistakes of single fields: unknown keys, types, bounds and choices."""
    found: dict[str, str] = {}
    tree = config.to_dict() if isinstance(config, ConfigDict) else config
    return changed(Recipe(), _sound(Recipe, tree, "", found)), found


def in_phase(path: str) -> tuple[str, str]:
    """The phase that a dotted path speaks of, and the setting there; or no phase, and the path itself."""
    first, _, rest = path.partition(".")
    name, dot, setting = rest.partition(".")
    return (name, setting) if first == "phases" and dot else ("", path)


def unknown_key(path: str, phases: Iterable[str] = ()) -> str:
    """The sentence for a dotted path that is no setting: the nearest one, and the keys that stand beside it.

    ``phases`` are those that the recipe has, where a path may speak of none of them.
    """
    name, setting = in_phase(path)
    names = list(phases)
    if path.startswith("phases.") and names and path.split(".")[1] not in names:
        wrong = path.split(".")[1]
        good = nearest(wrong, names)
        return f"config.phases: no {wrong!r}; the nearest is {good!r} (all: {', '.join(names)})"
    kind, sections = Recipe, ([f"phases.{name}"] if name else [])
    for part in setting.split(".")[:-1]:
        inner = get_type_hints(kind).get(part)
        if not (isinstance(inner, type) and dataclasses.is_dataclass(inner)):
            break
        kind, sections = inner, [*sections, part]
    beside = [field.name for field in dataclasses.fields(kind)]
    known = [known for known, _, _ in settings()]
    known += sorted({known.rpartition(".")[0] for known in known} - {""})
    if name:
        known = ["kind", "start", *(known for known in known if known.partition(".")[0] in SECTIONS)]
        beside = ["kind", "start", *SECTIONS] if kind is Recipe else beside
    good = ".".join([*sections[: bool(name)], nearest(setting, known)])
    place = ".".join(["config", *sections])
    return f"config.{path}: no such key; the nearest is config.{good} ({place} has {', '.join(beside)})"


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
        old = _as(type(new), old)
        if old != new and not path.startswith(("run.", "mesh.", "rollout.sharded")):
            found.append(f"config.{path} was {old!r} and is now {new!r}")
    return found


def _sound(kind: type, tree: Any, prefix: str, found: dict[str, str], only: Iterable[str] = ()) -> dict[str, Any]:
    """The values in a mapping that can stand in a dataclass, nested as there; mistakes go into ``found``.

    ``only`` are the fields that may be there, if not all.
    """
    hints = get_type_hints(kind)
    if not isinstance(tree, Mapping):
        found[prefix.rstrip(".")] = f"config.{prefix.rstrip('.')}={tree!r}: a section of keys, not a value"
        return {}
    allowed = {field.name: field for field in dataclasses.fields(kind) if not only or field.name in only}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if key not in allowed:
            found[path] = unknown_key(path)
            continue
        inner = hints[key]
        if inner is Phases:
            values[key] = _sound_phases(value, found)
        elif isinstance(inner, type) and dataclasses.is_dataclass(inner):
            values[key] = _sound(inner, value, f"{path}.", found)
        else:
            value = _as(inner, value)
            problem = _value_problem(inner, value, allowed[key].metadata)
            if problem:
                found[path] = f"config.{path}={value!r}: {problem}"
            else:
                values[key] = value
    return values


def _sound_phases(tree: Any, found: dict[str, str]) -> Phases:
    """Of each phase what is sound."""
    if not isinstance(tree, Mapping):
        found["phases"] = f"config.phases={tree!r}: a section of keys, not a value"
        return Phases()
    sound: dict[str, Any] = {}
    for name, given in tree.items():
        prefix, own = f"phases.{name}", {}
        if isinstance(given, Mapping):
            for key, choices in (("kind", rules.STAGES), ("start", ())):
                problem = _value_problem(
                    str, given.get(key, choices[0] if choices else ""), _LIMITS | {"choices": choices}
                )
                if problem:
                    found[f"{prefix}.{key}"] = f"config.{prefix}.{key}={given[key]!r}: {problem}"
                elif key in given:
                    own[key] = given[key]
            given = {key: value for key, value in given.items() if key not in ("kind", "start")}
        sound[name] = own | _sound(Recipe, given, f"{prefix}.", found, only=SECTIONS)
    return Phases(sound)


def _as(kind: type, value: Any) -> Any:
    """A list or a single name as the tuple, and a whole number as the float, that is meant."""
    if kind is tuple and isinstance(value, list | str):
        return (value,) if isinstance(value, str) else tuple(value)
    return float(value) if kind is float and type(value) is int else value


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
