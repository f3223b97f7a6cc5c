"""``--config=FILE[:SCALE]`` and ``--config.key=value`` in the ml_collections way; every mistake is told in one line."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import runpy
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from posttrain_jax.errors import UserError
from posttrain_jax.run import validate
from posttrain_jax.run.recipe import Recipe, flatten, settings
from posttrain_jax.run.sizes import training_bytes

SCALES = ("tiny", "small", "full")
RECIPES = Path(__file__).resolve().parents[1] / "configs"


def argument(arguments: Sequence[str]) -> str | None:
    """The last value of ``--config`` on a command line, written ``--config=FILE`` or ``--config FILE``."""
    found = None
    for position, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in ("--config", "-config"):
            found = value if equals else "".join(arguments[position + 1 : position + 2])
    return found


def load(path: Path, scale: str | None) -> ConfigDict:
    """What ``get_config(scale)`` of a configuration file returns; ``get_config()`` where there is no scale.

    Raises:
      UserError: the file is missing or broken; one line with the place.
    """
    get_config = _get_config(path)
    try:
        config = get_config() if scale is None else get_config(scale)
    except Exception as error:  # whatever a configuration file may do wrong, it is told as one line
        raise UserError(_broken(path, error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config must return an ml_collections ConfigDict, not {type(config).__name__}")
    return config


def override(path: Path, scale: str | None, given: Iterable[tuple[str, str | None]]) -> tuple[ConfigDict, list[str]]:
    """The configuration with ``config.key`` assignments applied, and a sentence for each that cannot be.

    Every assignment is tried alone first, so that all mistakes are told at once.
    """
    given = list(given)
    plain = _with_phase_keys(load(path, scale), [name.removeprefix("config.") for name, _ in given])
    sections, known = _sections(plain), flatten(plain.to_dict())
    good, mistakes = [], []
    names: dict[str, tuple] = {}
    for name, value in given:
        key = name.removeprefix("config.")
        if key in sections:
            mistakes.append(f"--{name}: is a section; set one of its keys: {', '.join(sections[key])}")
        elif key not in known:
            mistakes.append(validate.unknown_key(key, plain.to_dict().get("phases", {})))
        elif value is None:
            mistakes.append(f"--{name}: needs a value, such as {_example(known[key])}")
        elif _takes_names(key) and (read := _read_names(value)) is not None:
            names[name] = (*names.get(name, ()), *read)
        elif not _takes_names(key) and _accepts(plain, f"--{name}={value}"):
            good.append(f"--{name}={value}")
        else:
            mistakes.append(f"config.{key}={value}: expected {_kind(known[key])}, such as {_example(known[key])}")
    return _parse(plain, [*good, *(f"--{name}={read!r}" for name, read in names.items())]), mistakes


def is_boolean(config: ConfigDict, name: str) -> bool:
    """Whether ``config.key`` names a yes-or-no setting, which needs no value on the command line."""
    values, key = flatten(config.to_dict()), name.removeprefix("config.")
    return name.startswith("config.") and isinstance(values.get(key, values.get(validate.in_phase(key)[1])), bool)


def needs(path: Path) -> dict[str, float]:
    """GiB that training takes at each scale a configuration file has, smallest first; empty where it knows no scales.

    Raises:
      UserError: the file is missing or broken.
    """
    if not inspect.signature(_get_config(path)).parameters:
        return {}
    found: dict[str, float] = {}
    failures: list[UserError] = []
    for scale in SCALES:
        try:
            found[scale] = training_bytes(validate.structure(load(path, scale))[0]) / 2**30
        except UserError as error:
            failures.append(error)
    if not found:
        raise failures[0]
    return found


def rows(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Name, value and help of every field, for the table of ``--help``."""
    values = flatten(dataclasses.asdict(recipe))
    about = {path: _about(field) for path, _, field in settings()}
    own = [path for path in values if path.startswith("phases.")]
    return [
        *((f"--config.{path}", _example(values[path]), about[path]) for path in about),
        *((f"--config.{path}", _example(values[path]), "of this phase alone (docs/phases.md)") for path in own),
    ]


def _get_config(path: Path) -> Callable[..., Any]:
    if not path.is_file():
        raise UserError(_missing(path))
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
    except Exception as error:  # as in `load`
        raise UserError(_broken(path, error)) from error
    if not callable(get_config):
        raise UserError(f"{path}: needs a function get_config(scale) that returns an ml_collections ConfigDict")
    return get_config


def _with_phase_keys(config: ConfigDict, keys: Iterable[str]) -> ConfigDict:
    """The configuration; where a key speaks of a setting that a phase leaves as it is, the phase states it itself."""
    phases: Any = config.get("phases", {})
    values = {**flatten(config.to_dict()), "kind": "", "start": ""}
    for key in keys:
        name, setting = validate.in_phase(key)
        if name not in phases or setting not in values:
            continue
        place, (*sections, last) = phases[name], setting.split(".")
        for section in sections:
            if section not in place:
                place[section] = ConfigDict()
            place = place[section]
        if last not in place:
            place[last] = values[setting]
        elif _takes_names(setting) and isinstance(place[last], str | list):
            named = place[last]
            del place[last]  # with its type
            place[last] = (named,) if isinstance(named, str) else tuple(named)
    return config


def _takes_names(key: str) -> bool:
    """Whether a setting is a tuple of names, which a command line gives one by one, or as a tuple or list."""
    return any(kind is tuple and path == validate.in_phase(key)[1] for path, kind, _ in settings())


def _read_names(value: str) -> tuple | None:
    """The names in a value: itself, whatever is written in it, or those of a tuple or list; None for a broken one."""
    if not value.lstrip().startswith(("(", "[")):
        return (value,)
    try:
        read = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        return None
    return tuple(read) if isinstance(read, tuple | list) else (read,)


def _parse(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    command = ["", *overrides]
    config_flags.DEFINE_config_dict(
        "config", copy.deepcopy(config), lock_config=True, flag_values=values, sys_argv=command
    )
    values(command)
    return values.config


def _accepts(config: ConfigDict, assignment: str) -> bool:
    try:
        _parse(config, [assignment])
    except (flags.Error, TypeError, ValueError, SyntaxError):
        return False
    return True


def _sections(config: ConfigDict, prefix: str = "") -> dict[str, list[str]]:
    """Dotted path of each inner ConfigDict -> its keys."""
    found: dict[str, list[str]] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            found[prefix + key] = list(value.keys())
            found.update(_sections(value, f"{prefix}{key}."))
    return found


def _missing(path: Path) -> str:
    there = sorted({*path.parent.glob("*.py"), *Path("configs").glob("*.py"), *RECIPES.glob("*.py")})
    if not there:
        return f"--config={path}: no such file"
    return f"--config={path}: no such file; the nearest is {validate.nearest(str(path), [str(p) for p in there])}"


def _broken(path: Path, error: Exception) -> str:
    """``FILE:LINE: what is wrong``, with the last line of the configuration file that was being run."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}:{error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    place = f"{path}:{lines[-1]}" if lines else f"{path}"
    return f"{place}: {type(error).__name__}: " + " ".join(str(error).split())


def _kind(value: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", tuple: "names", str: "text"}.get(
        type(value), type(value).__name__
    )


def _example(value: Any) -> str:
    return repr(value) if isinstance(value, tuple) else str(value)


def _about(field: dataclasses.Field) -> str:
    """Help of a field, with its choices and bounds."""
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    limits = [f"one of {', '.join(field.metadata['choices'])}"] if field.metadata["choices"] else []
    limits += [f"at least {low}"] if low is not None else []
    limits += [f"at most {high}"] if high is not None else []
    return field.metadata["help"] + (f" [{'; '.join(limits)}]" if limits else "")
