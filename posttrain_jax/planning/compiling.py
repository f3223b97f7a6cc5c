"""Programs compiled in processes of their own, and what was read from them kept on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from posttrain_jax.errors import UserError
from posttrain_jax.planning.chips import Slice, read_slice
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.run.validate import recipe_from

SOURCES = ("posttrain_jax", "pallas_kernels")
# of a recipe, what no compiled program depends on
IGNORED = (
    "name",
    "scale",
    "seed",
    "stages",
    "phases",
    "distill",
    "tokenizer",
    "weights",
    "variant",
    "tasks",
    "evaluation",
    "run",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A program of a recipe, for a slice."""

    recipe: Recipe
    part: Slice
    program: str

    @property
    def key(self) -> str:
        """The same for whatever compiles to the same: recipe, slice, program, this source, the compiler."""
        told = {name: value for name, value in dataclasses.asdict(self.recipe).items() if name not in IGNORED}
        what = {"recipe": told, "slice": self.part.name, "program": self.program, "by": _versions()}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def cache_directory() -> Path:
    """``POSTTRAIN_JAX_PLAN_CACHE``, or a folder in the user's own cache."""
    return Path(os.environ.get("POSTTRAIN_JAX_PLAN_CACHE") or Path.home() / ".cache" / "posttrain_jax" / "plans")


def read_all(
    jobs: Iterable[Job], *, workers: int = 1, log: Callable[[str], Any] = print, keep: Path | None = None
) -> dict[Job, dict[str, Any]]:
    """The `reading.Reading` of each job as a mapping, from disk where it is there; one refused has only an ``error``.

    Args:
      jobs: to be read.
      workers: programs compiled at a time; a large one takes several GB and a core.
      log: called with a line for each that was compiled.
      keep: a folder for the compiled texts, which then are compiled in any case.
    """
    found: dict[Job, dict[str, Any]] = {}
    missing = []
    for job in dict.fromkeys(jobs):
        path = cache_directory() / f"{job.key}.json"
        if keep is None and path.exists():
            found[job] = {**json.loads(path.read_text()), "cached": True}
        else:
            missing.append(job)
    if not missing:
        return found
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
        futures = {pool.submit(_compile, dataclasses.asdict(job.recipe), job.part.name, job.program, keep): job
                   for job in missing}  # fmt: skip
        for future in as_completed(futures):
            job = futures[future]
            try:
                told = future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    f"the compiler died with {job.program} for {job.part.name}, most likely for want of memory on this"
                    " machine: compile one program at a time (--programs)"
                ) from error
            if "error" not in told:
                _write(cache_directory() / f"{job.key}.json", told)
                log(f"{job.program} for {job.part.name} compiled in {told['compile_seconds']:.0f} s,"
                    f" {told['host_bytes'] / 2**30:.1f} GiB of this machine")  # fmt: skip
            found[job] = {**told, "cached": False}
    return found


def _compile(recipe: dict[str, Any], part: str, program: str, keep: Path | None) -> dict[str, Any]:
    """In a process of its own, so that its memory is its own and is given back."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # libtpu complains of the TPU that is not there
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    from posttrain_jax.planning.reading import read_program

    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    try:
        told = read_program(
            recipe_from(recipe), read_slice(part), program, keep / f"{program}.hlo.txt" if keep else None
        )
    except (ValueError, NotImplementedError) as error:
        return {"error": str(error)}
    return json.loads(json.dumps(dataclasses.asdict(told)))


def _write(path: Path, told: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(told))
    fresh.rename(path)


@functools.cache
def _versions() -> dict[str, str]:
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for folder in SOURCES:
        for path in sorted([*(root / folder).rglob("*.py"), *(root / folder).glob("*.json")]):
            digest.update(path.read_bytes())
    versions = {name: _version(name) for name in ("jax", "jaxlib", "libtpu", "flax", "optax")}
    return {"source": digest.hexdigest(), **versions}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
