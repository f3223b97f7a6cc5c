"""One program through the TPU compiler, and what can be read from what it made."""

from __future__ import annotations

import dataclasses
import math
import re
import resource
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import tiles, tpu_compiler
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.planning import hlo
from posttrain_jax.planning.chips import Slice
from posttrain_jax.planning.collectives import Layout, describe
from posttrain_jax.planning.programs import Program, build
from posttrain_jax.planning.schedule import Walk
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.stages.step import HOST

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the compiler made of a program, on one device; all of it can be kept as JSON.

    Attributes:
      fits: False where the compiler refused for want of HBM; then only ``memory`` and ``refusal`` say anything.
      memory: bytes of weights, optimiser, gradients, activations, cache, batch, code, and padding of arguments.
      totals: numbers of `schedule.Totals`.
      collectives: kind, axes, times, bytes and seconds of each.
      sources: seconds of the core beyond its FLOPs at the peak, by place in the program, the longest first.
      refusal: what the compiler said.
      compile_seconds, host_bytes: what compiling took here.
    """

    fits: bool
    memory: dict[str, float]
    totals: dict[str, float]
    collectives: list[dict[str, Any]]
    sources: list[tuple[str, float]]
    refusal: str
    compile_seconds: float
    host_bytes: float


def read_program(recipe: Recipe, part: Slice, name: str, keep: Path | None = None) -> Reading:
    """Compiles a program of a recipe for a slice, and reads it; ``keep`` is a file for the compiled text.

    Raises:
      ValueError: the mesh does not make the slice's devices, or the compiler refuses for another reason than HBM.
    """
    start = time.perf_counter()
    mesh = make_mesh(**dataclasses.asdict(recipe.mesh), devices=tpu_compiler.devices(part.name))
    with tiles.compiling_for(part.kind), tpu_compiler.uncached():
        program = build(recipe, name, mesh)
        run: Any = program.run
        lowered = run.trace(*program.arguments).lower(lowering_platforms=("tpu",))
        sizes = {label: _bytes(tree) for label, tree in program.parts.items()}
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or "hbm" not in str(error).lower():
                raise ValueError(f"the TPU compiler refuses {name}: {_first_line(error)}") from error
            memory = _refused(sizes, _bytes(program.gradients), str(error))
            return Reading(False, memory, {}, [], [], _first_line(error), *_cost(start))
    text = compiled.as_text()
    if keep:
        keep.write_text(text)
    layout = Layout(dict(mesh.shape), part, np.array([d.coords[: len(part.shape)] for d in mesh.devices.flatten()]))
    totals = Walk(hlo.read(text), layout, program.turns, program.rounds).whole()
    told = {name: float(value) for name, value in vars(totals).items() if isinstance(value, int | float)}
    rows = [
        {"kind": kind, "axes": describe(axes), "times": times, "bytes": moved, "seconds": seconds}
        for (kind, axes), (times, moved, seconds) in totals.collectives.items()
    ]
    longest = sorted(totals.sources.items(), key=lambda item: -item[1])[:50]
    memory = _memory(sizes, program, compiled.memory_analysis())
    ordered = sorted(rows, key=lambda row: -row["seconds"])
    return Reading(True, memory, told, ordered, longest, "", *_cost(start))


def _cost(start: float) -> tuple[float, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return time.perf_counter() - start, peak


def _bytes(tree: Any) -> float:
    """On each device; a random key is two words, and what waits on the hosts is none."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        if leaf.sharding.memory_kind == HOST:
            continue
        size = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.dtype(leaf.dtype).itemsize
        total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * size
    return total


def _memory(sizes: dict[str, float], program: Program, told: Any) -> dict[str, float]:
    """The compiler's account split up; the parts add up to its arguments, fresh results, temporaries and code."""
    gradients = min(_bytes(program.gradients), told.temp_size_in_bytes)
    known = sum(sizes.values())
    fresh = max(told.output_size_in_bytes - told.alias_size_in_bytes, 0)
    return {
        **sizes,
        "gradients": gradients,
        "activations": told.temp_size_in_bytes - gradients,
        "results": float(fresh),
        "padding": max(told.argument_size_in_bytes - known, 0.0),
        "code": float(told.generated_code_size_in_bytes),
    }


def _refused(sizes: dict[str, float], gradients: float, message: str) -> dict[str, float]:
    """The same from the message of a refusal, which tells what temporaries take, or all together."""
    temporaries = re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds", message)
    whole = re.search(r"Used ([\d.]+)([KMGT]?)i?B? of", message)
    rest = gradients
    if temporaries:
        rest = float(temporaries[1]) * UNITS[temporaries[2]]
    elif whole:
        rest = max(float(whole[1]) * UNITS[whole[2]] - sum(sizes.values()), 0.0)
    gradients = min(gradients, rest)
    return {**sizes, "gradients": gradients, "activations": rest - gradients}


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
