"""Other meshes and remat policies than the recipe's: which there are near it, and which fits and is fastest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from posttrain_jax.run.recipe import MeshShape, Recipe

AXES = tuple(field.name for field in dataclasses.fields(MeshShape))
REMAT = ("none", "save_dots", "save_attention", "full")


def resolved(mesh: MeshShape, devices: int) -> MeshShape | None:
    """The mesh with what ``data=-1`` takes; None where it does not multiply to the devices."""
    rest = math.prod(getattr(mesh, axis) for axis in AXES if axis != "data")
    data = devices // rest if mesh.data == -1 else mesh.data
    return dataclasses.replace(mesh, data=data) if data > 0 and data * rest == devices else None


def nearest_mesh(mesh: MeshShape, devices: int) -> MeshShape:
    """The mesh over so many devices whose axes are least factors away from those asked for."""
    wanted = {axis: max(getattr(mesh, axis), 1) for axis in AXES}

    def distance(shape: MeshShape) -> float:
        return sum(abs(math.log(getattr(shape, axis) / wanted[axis])) for axis in AXES)

    return min(_factorings(devices), key=distance)


def _factorings(devices: int, axes: tuple[str, ...] = AXES) -> Iterator[MeshShape]:
    for sizes in _sizes(devices, len(axes)):
        yield MeshShape(**dict(zip(axes, sizes, strict=True)))


def _sizes(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (number,)
        return
    for first in (d for d in range(1, number + 1) if number % d == 0):
        for rest in _sizes(number // first, parts - 1):
            yield first, *rest


def candidates(recipe: Recipe, devices: int, most: int) -> list[Recipe]:
    """The recipe itself, then those that differ least: one factor moved between two mesh axes, or another remat.

    Only such whose axes divide what they split, and whose weights alone do not already exceed what is there.
    """
    own = resolved(recipe.mesh, devices)
    found = [] if own is None else [dataclasses.replace(recipe, mesh=own)]
    start = own or nearest_mesh(recipe.mesh, devices)
    moved = [dataclasses.replace(recipe, mesh=mesh) for mesh in _moves(start)]
    others = [
        dataclasses.replace(recipe, mesh=start, precision=dataclasses.replace(recipe.precision, remat=remat))
        for remat in REMAT
        if remat != recipe.precision.remat
    ]
    # in turns, so that a short search has seen both
    for pair in range(max(len(moved), len(others))):
        found += moved[pair : pair + 1] + others[pair : pair + 1]
    return [candidate for candidate in found if divides(candidate)][:most]


def divides(recipe: Recipe) -> bool:
    """Whether every mesh axis divides what it splits."""
    mesh, model = recipe.mesh, recipe.model
    shards = mesh.data * mesh.fsdp * mesh.expert
    rows = [
        recipe.sft.microbatch_rows * ("sft" in recipe.kinds),
        recipe.rl.microbatch_rows * ("rl" in recipe.kinds),
    ]
    return (
        model.experts % mesh.expert == 0
        and model.kv_heads % mesh.tensor == 0
        and recipe.sft.length % mesh.context == 0
        and recipe.rl.length % mesh.context == 0
        and all(count % shards == 0 for count in rows)
    )


def _moves(mesh: MeshShape) -> Iterator[MeshShape]:
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    for source in sorted(AXES, key=lambda axis: -sizes[axis]):
        factor = next((d for d in range(2, sizes[source] + 1) if sizes[source] % d == 0), None)
        if factor is None:
            continue
        for target in ("expert", "fsdp", "tensor", "context", "data"):
            if target != source:
                moved = {source: sizes[source] // factor, target: sizes[target] * factor}
                yield dataclasses.replace(mesh, **moved)


def say(recipe: Recipe) -> str:
    """What a candidate would have set on the command line."""
    shape = " ".join(f"{axis}={getattr(recipe.mesh, axis)}" for axis in AXES if getattr(recipe.mesh, axis) > 1)
    return f"{shape or 'one device'}, remat={recipe.precision.remat}"
