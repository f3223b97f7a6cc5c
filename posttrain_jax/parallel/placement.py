"""The mesh that a program is traced for, and work that each of its devices does on its own part of the arrays.

    with placement.on(mesh):
        y = model(x)          # here the kernels run in `shard_map`, and activations stay where the rules put them

Outside, and on a mesh of one device, `current` is None and every function is the one without a mesh.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from posttrain_jax.parallel import mesh as meshes

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Exchange:
    """How tokens reach experts on other devices (`experts`).

    Attributes:
      form: "ragged", "gather" or "fetch"; None chooses.
      quota: rows that one device may send another at a time, as a multiple of what even routing would send.
      most_rows: rows that a device takes in at a time, from all others together.
    """

    form: str | None = None
    quota: float = 1.5
    most_rows: int = 1 << 16


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh of several devices, the rules of the layout on it, and how experts are reached."""

    mesh: Mesh
    rules: meshes.Rules = dataclasses.field(default_factory=lambda: meshes.TRAIN)
    exchange: Exchange = Exchange()

    def spec(self, axes: Axes, shape: tuple[int, ...]) -> P:
        """`mesh.spec` here."""
        return meshes.spec(axes, shape, self.mesh, self.rules)

    def size(self, names: Sequence[str]) -> int:
        """How many devices lie along these mesh axes."""
        return math.prod(self.mesh.shape[name] for name in names)


_current: ContextVar[Placement | None] = ContextVar("placement", default=None)


@contextlib.contextmanager
def on(mesh: Mesh | None, rules: meshes.Rules = meshes.TRAIN, exchange: Exchange = Exchange()) -> Iterator[None]:
    """What is traced inside runs on this mesh. To be entered inside the function that is compiled, or put on it."""
    token = _current.set(Placement(mesh, rules, exchange) if mesh is not None and mesh.size > 1 else None)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Placement | None:
    """Where the program that is being traced runs; None without a mesh of several devices."""
    return _current.get()


def along(part: P, axis: int) -> tuple[str, ...]:
    """The mesh axes that split this axis of an array."""
    entry = part[axis] if axis < len(part) else None
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def whole(x: Array, names: Sequence[str], axis: int) -> Array:
    """Inside `shard_map`: an axis that lies over these mesh axes, gathered; its gradient is scattered again.

    One mesh axis after the other, and the last axis of an array by way of the front: XLA's TPU compiler makes sums of
    arrays full of zeros, twice the traffic, of gathers over several mesh axes, and of scatters along the last axis.
    """
    for name in reversed(names):
        if axis < x.ndim - 1:
            x = jax.lax.all_gather(x, name, axis=axis, tiled=True)
        else:
            x = jnp.moveaxis(jax.lax.all_gather(x, name), 0, axis).reshape(*x.shape[:axis], -1)
    return x


# Of a result that all devices along an axis hold alike, `shard_map` hands each an equal share of the gradient. Those
# below know the whole of it without asking the others.


def alike(x: Array, names: tuple[str, ...]) -> Array:
    """x, that all devices along these axes hold alike; its gradient is the whole one on each."""
    return cast(Array, _alike(x, names))


def summed(x: Array, names: tuple[str, ...]) -> Array:
    """The sum of x over these axes, in the form of `alike`; x itself over none."""
    return cast(Array, _summed(x, names)) if names else x


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _alike(x, names):
    return x


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _summed(x, names):
    return jax.lax.psum(x, names)


def _whole_gradient(names, _, share):
    return (share * jax.lax.axis_size(names),)


_alike.defvjp(lambda x, names: (x, None), _whole_gradient)
_summed.defvjp(lambda x, names: (jax.lax.psum(x, names), None), _whole_gradient)


def constrain(x: Array, axes: Axes) -> Array:
    """x, laid as its axes are named; x itself without a mesh."""
    place = current()
    if place is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(place.mesh, place.spec(axes, x.shape)))


def each_part(f: Callable[..., Any], args: Sequence[Any], axes: Sequence[Axes], out_axes: Sequence[Axes]) -> Any:
    """``f(*args)``, where no device needs more than its own part of the arguments to make its part of the results.

    Args:
      axes, out_axes: the names of the axes of each argument, and of each of the results, which are a tuple.
    """
    place = current()
    if place is None:
        return f(*args)
    into = tuple(place.spec(names, x.shape) for names, x in zip(axes, args, strict=True))
    shapes = jax.eval_shape(f, *args)
    out_of = tuple(place.spec(names, x.shape) for names, x in zip(out_axes, shapes, strict=True))
    return jax.shard_map(f, mesh=place.mesh, in_specs=into, out_specs=out_of, check_vma=False)(*args)
