"""The device mesh, and where each logical axis of a weight or batch lies on it.

A model names the axes of its arrays ("embed", "heads", "expert", ...); it never names a device. The one table below
decides which mesh axis splits which logical axis, so a layout is changed here and nowhere else.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "expert", "tensor")

# logical axis -> mesh axis that splits it (None: every device holds all of it)
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp", "expert"),
    "length": None,
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "expert": "expert",
    "ffn": "tensor",
    "expert_ffn": "tensor",
    "vocab": "tensor",
    "norm": None,
}


def make_mesh(data: int = -1, fsdp: int = 1, expert: int = 1, tensor: int = 1, devices: list | None = None) -> Mesh:
    """A mesh over all devices; ``data=-1`` takes what the other axes leave.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    rest = fsdp * expert * tensor
    if data == -1:
        data = max(len(devices) // rest, 1)
    shape = (data, fsdp, expert, tensor)
    if math.prod(shape) != len(devices):
        sizes = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, shape, strict=True))
        raise ValueError(f"mesh {sizes} needs {math.prod(shape)} devices, and {len(devices)} are attached")
    return jax.make_mesh(shape, MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * len(shape))


def spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> P:
    """The partition of an array whose axes carry these names; an axis the mesh cannot divide evenly stays whole."""
    parts = []
    for name, size in zip(axes, shape, strict=True):
        rule = RULES[name] if name is not None else None
        over = math.prod(mesh.shape[axis] for axis in ((rule,) if isinstance(rule, str) else rule or ()))
        parts.append(rule if over > 1 and size % over == 0 else None)
    while parts and parts[-1] is None:  # as XLA writes it: an equal layout must also compare equal, or jit starts anew
        parts.pop()
    return P(*parts)


def sharding(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """`spec` bound to the mesh."""
    return NamedSharding(mesh, spec(axes, shape, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def put_batch(batch: Any, mesh: Mesh, batch_axis: int = 0) -> Any:
    """Moves a tree of host arrays to the mesh, splitting ``batch_axis`` over the data axes.

    Of several processes each brings the same arrays, and moves what its own devices hold.
    """

    def put(array):
        axes: list[str | None] = [None] * array.ndim
        if array.ndim > batch_axis:
            axes[batch_axis] = "batch"
        where = sharding(tuple(axes), array.shape, mesh)
        if where.is_fully_addressable:
            return jax.device_put(array, where)
        return jax.make_array_from_callback(array.shape, where, lambda part: array[part])

    return jax.tree.map(put, batch)
