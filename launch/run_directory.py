"""The directory of a run: its default name, its config.json, and whether the same run may go on in it."""

from __future__ import annotations

import dataclasses
import json
import secrets
from pathlib import Path

from posttrain_jax.errors import UserError
from posttrain_jax.run import durable, validate
from posttrain_jax.run.recipe import Recipe


def default(recipe: Recipe) -> Path:
    """``runs/<recipe>-<scale>-seed<seed>``: the same command finds the same directory again."""
    return Path("runs") / f"{recipe.name}-{recipe.scale}-seed{recipe.seed}"


def claim(workdir: Path, recipe: Recipe) -> bool:
    """Writes config.json in a new directory, or checks that the one there states the same run; True when it does.

    Raises:
      UserError: the directory holds another run, or its config.json cannot be read.
      OSError: nothing can be written there.
    """
    different = conflict(workdir, recipe)
    if different:
        raise UserError("\n".join(different))
    resumed = (workdir / "config.json").exists()
    workdir.mkdir(parents=True, exist_ok=True)
    durable.replace(workdir / "config.json", (json.dumps(dataclasses.asdict(recipe), indent=2) + "\n").encode())
    return resumed


def claim_together(workdir: Path, recipe: Recipe) -> None:
    """`claim` by process 0 of the run, for all of its processes.

    Raises:
      UserError: as `claim`, or a process does not see what process 0 writes there.
    """
    import jax

    from posttrain_jax.parallel import exchange

    mark = None
    if jax.process_index() == 0:
        claim(workdir, recipe)
        if jax.process_count() > 1:
            mark = workdir / f".shared-{secrets.token_hex(8)}"
            mark.touch()
    name = exchange.gather(mark and mark.name)[0]
    seen = exchange.gather(name is None or (workdir / name).exists())
    if mark:
        mark.unlink()
    if not all(seen):
        raise UserError(
            f"--workdir={workdir}: process {seen.index(False)} does not see what process 0 wrote there; choose a"
            " directory that all processes share"
        )


def conflict(workdir: Path, recipe: Recipe) -> list[str]:
    """Why the run of ``recipe`` cannot go on in ``workdir``, a sentence each; empty when it can.

    Raises:
      UserError: the config.json there cannot be read.
    """
    if not (workdir / "config.json").exists():
        if (workdir / "checkpoints").exists():
            return [f"--workdir={workdir}: has checkpoints/ but no config.json; choose another --workdir"]
        return []
    different = validate.differences(_stored(workdir), recipe)
    if different:
        different.append(
            f"--workdir={workdir}: holds a run of another configuration; choose another --workdir,"
            " or undo the changes above to go on with that run"
        )
    return different


def read(workdir: Path) -> Recipe:
    """The recipe of the run in ``workdir``.

    Raises:
      UserError: there is no run, or its config.json cannot be read.
    """
    if not (workdir / "config.json").exists():
        runs = sorted(str(path.parent) for path in workdir.parent.glob("*/config.json"))
        hint = f"; the nearest is {validate.nearest(str(workdir), runs)}" if runs else ""
        raise UserError(f"--workdir={workdir}: no run there (config.json is missing){hint}")
    try:
        return validate.recipe_from(_resolved(workdir))
    except validate.InvalidRecipe as error:
        raise UserError("\n".join(f"{workdir / 'config.json'}: {problem}" for problem in error.problems)) from error


def stated(workdir: Path) -> Recipe:
    """The recipe in ``workdir``, for looking at its model alone: whether it could run is not asked.

    Raises:
      UserError: there is none.
    """
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir}: no run there (config.json is missing)")
    return validate.structure(_stored(workdir))[0]


def _resolved(workdir: Path) -> dict:
    """config.json, with a tokenizer that lies in the directory itself as a path from here."""
    stored = _stored(workdir)
    name = stored.get("tokenizer")
    if isinstance(name, str) and name and (workdir / name).exists():
        stored["tokenizer"] = str(workdir / name)
    return stored


def _stored(workdir: Path) -> dict:
    path = workdir / "config.json"
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); choose another --workdir") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path}: is not a JSON object; choose another --workdir")
    return stored
