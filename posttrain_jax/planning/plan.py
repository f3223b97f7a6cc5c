"""A recipe on a slice: every program compiled or taken from disk, estimated, and summed up."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain_jax.errors import UserError
from posttrain_jax.planning import search
from posttrain_jax.planning.chips import Slice
from posttrain_jax.planning.compiling import Job, read_all
from posttrain_jax.planning.estimate import estimate
from posttrain_jax.planning.work import DECODE, PREFILL, PROGRAMS, SFT, TRANSFER
from posttrain_jax.run.nearest import nearest
from posttrain_jax.run.recipe import Recipe

ASSUMED = (
    "loops whose turns depend on data: the outermost as the recipe says, exchanges with experts as even routing does",
    "every response as long as allowed, rows full, one round of sampling",
    "instructions at the compiler's estimated cycles, kernels and the rest at peak or bandwidth, links at theirs",
)


def programs(names: Sequence[str], recipe: Recipe) -> list[str]:
    """Those asked for, or all that the recipe's stages run.

    Raises:
      UserError: an unknown one.
    """
    wrong = [name for name in names if name not in PROGRAMS]
    if wrong:
        raise UserError(
            "\n".join(
                f"--programs: no {name!r}; the nearest is {nearest(name, PROGRAMS)} (all: {', '.join(PROGRAMS)})"
                for name in wrong
            )
        )
    used = {
        "sft": PROGRAMS[:1],
        "distill": (SFT, PREFILL, DECODE, TRANSFER),
        "rl": PROGRAMS[1:],
    }  # learning from pairs is not planned for
    return list(dict.fromkeys(names or [name for kind in recipe.kinds for name in used.get(kind, ())]))


def check(recipe: Recipe, part: Slice) -> Recipe:
    """The recipe with its mesh spelled out for the slice.

    Raises:
      UserError: there is no compiler, or the mesh does not multiply to the devices; says which would.
    """
    if not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")):
        raise UserError('the TPU compiler is missing: pip install -e ".[tpu]"')
    mesh = search.resolved(recipe.mesh, part.devices)
    if mesh is None:
        asked = " ".join(f"{axis}={getattr(recipe.mesh, axis)}" for axis in search.AXES)
        near = search.nearest_mesh(recipe.mesh, part.devices)
        flags = " ".join(
            f"--config.mesh.{axis}={getattr(near, axis)}"
            for axis in search.AXES
            if getattr(near, axis) != getattr(recipe.mesh, axis)
        )
        raise UserError(
            f"config.mesh: {asked} does not make the {part.devices} devices of {part.name}; the nearest is {flags}"
        )
    return dataclasses.replace(recipe, mesh=mesh)


def make(
    recipe: Recipe, part: Slice, names: Sequence[str], *, log: Callable[[str], Any] = print, keep: Path | None = None
) -> dict[str, Any]:
    """The plan, as JSON: a row for each program, and what the whole recipe takes."""
    jobs = {name: Job(recipe, part, name) for name in names}
    told = read_all(jobs.values(), log=log, keep=keep)
    rows = [estimate(recipe, part, name, told[job]) for name, job in jobs.items()]
    whole = [row for row in rows if "chip_hours" in row]
    return {
        "title": f"{recipe.name}:{recipe.scale} on {part.name}, {search.say(recipe)}",
        "measured": False,
        "topology": part.name,
        "chips": part.chips,
        "devices": part.devices,
        "mesh": {axis: getattr(recipe.mesh, axis) for axis in search.AXES},
        "remat": recipe.precision.remat,
        "programs": rows,
        "fits": all(row["fits"] for row in rows),
        "chip_hours": sum(row["chip_hours"] for row in whole) if len(whole) == len(rows) else None,
        "assumptions": list(ASSUMED),
    }


def ranked(
    recipe: Recipe,
    part: Slice,
    names: Sequence[str],
    *,
    most: int,
    workers: int = 2,
    log: Callable[[str], Any] = print,
) -> list[dict[str, Any]]:
    """Candidates of `search`, those that fit and are fastest first; seconds are of one call of each program."""
    found = []
    tried = search.candidates(recipe, part.devices, most)
    told = read_all([Job(c, part, name) for c in tried for name in names], workers=workers, log=log)
    for candidate in tried:
        rows = [estimate(candidate, part, name, told[Job(candidate, part, name)]) for name in names]
        found.append(
            {
                "mesh": {axis: getattr(candidate.mesh, axis) for axis in search.AXES},
                "remat": candidate.precision.remat,
                "setting": search.say(candidate),
                "fits": all(row["fits"] for row in rows),
                "seconds": sum(row["seconds"] for row in rows) if all("seconds" in row for row in rows) else None,
                "memory_total": max((row.get("memory_total", 0.0) for row in rows), default=0.0),
                "mfu": rows[0].get("mfu"),
                "bound_by": rows[0].get("bound_by"),
                "errors": [row["error"] for row in rows if "error" in row],
            }
        )
    return sorted(found, key=lambda row: (not row["fits"], row["seconds"] is None, row["seconds"] or 0.0))
