"""The device mesh, and where each logical axis of a weight or batch lies on it.

A model names the axes of its arrays ("embed", "heads", "expert", ...); it never names a device. The tables below decide
which mesh axes split which logical axis, so a layout is changed here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "expert", "tensor", "context")

# logical axis -> the mesh axes that split it, the outermost first; () leaves it whole
Rules = Mapping[str, tuple[str, ...]]

# Training: whatever is not split for its own sake is split over every device that shares the batch or the length.
# "routed" names no axis of an array: over those mesh axes tokens may travel to experts; what else parts them is FSDP's.
TRAIN: Rules = {
    "batch": ("data", "fsdp", "expert"),
    "length": ("context",),
    "layers": (),
    "expert": ("expert", "fsdp", "context"),
    "routed": ("expert",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    "expert_ffn": ("tensor",),
    "vocab": ("tensor",),
    "embed": ("fsdp", "expert", "context"),
    "rank": ("fsdp", "expert", "context"),
    "norm": (),
}

# Decoding: a token meets every weight, so none is gathered. Experts lie apart as far as they go, then their inner
# width; the rest in copies. Rows are not cut, so they lie over "context" too.
APART = ("expert", "fsdp", "context", "data")
SAMPLE: Rules = {
    **TRAIN,
    "batch": (*TRAIN["batch"], "context"),
    "length": (),
    "embed": (),
    "rank": (),
    "expert": APART,
    "routed": APART,
    "expert_ffn": ("tensor", "context", "fsdp", "data"),
}
LANES = 128  # what kernels on a TPU want an expert's inner width to be a multiple of


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    expert: int = 1,
    tensor: int = 1,
    context: int = 1,
    devices: list | None = None,
) -> Mesh:
    """A mesh over all devices; ``data=-1`` takes what the other axes leave.

    Where devices are in several slices, joined by a slower network, ``data`` goes over the slices first, and every
    other axis stays inside one.

    Raises:
      ValueError: the axes do not multiply to the number of devices, or ``data`` not to that of slices.
    """
    devices = jax.devices() if devices is None else devices
    inner = (fsdp, expert, tensor, context)
    if data == -1:
        data = max(len(devices) // math.prod(inner), 1)
    shape = (data, *inner)
    sizes = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, shape, strict=True))
    if math.prod(shape) != len(devices):
        raise ValueError(f"mesh {sizes} needs {math.prod(shape)} devices, and {len(devices)} are attached")
    axis_types = (AxisType.Auto,) * len(shape)
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices == 1:
        try:
            return jax.make_mesh(shape, MESH_AXES, devices=devices, axis_types=axis_types)
        except NotImplementedError:  # an axis of a torus has to be split between two of the mesh
            laid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
            return Mesh(laid, MESH_AXES, axis_types=axis_types)
    if data % slices:
        raise ValueError(f"mesh {sizes} over {slices} slices needs data to be a multiple of {slices}")
    apart = (slices, *(1,) * len(inner))
    laid = mesh_utils.create_hybrid_device_mesh((data // slices, *inner), apart, devices)
    return Mesh(laid, MESH_AXES, axis_types=axis_types)


def spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules = TRAIN) -> P:
    """The partition of an array whose axes carry these names.

    A mesh axis splits one axis of an array, the first that asks for it: the experts' own "embed" is left with what
    "expert" has not taken. Of the mesh axes of a rule, the last are given up until the rest divide the axis evenly;
    those that cut an expert's inner width beyond "tensor", also until whole lanes are left.
    """
    parts, taken = [], set()
    for name, size in zip(axes, shape, strict=True):
        over = [a for a in (rules[name] if name is not None else ()) if mesh.shape[a] > 1 and a not in taken]
        grain = LANES if name == "expert_ffn" else 1
        while over and size % (math.prod(mesh.shape[a] for a in over) * (1 if over[-1] == "tensor" else grain)):
            over.pop()
        taken.update(over)
        parts.append(None if not over else over[0] if len(over) == 1 else tuple(over))
    while parts and parts[-1] is None:  # as XLA writes it: an equal layout must also compare equal, or jit starts anew
        parts.pop()
    return P(*parts)


def sharding(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules = TRAIN) -> NamedSharding:
    """`spec` bound to the mesh."""
    return NamedSharding(mesh, spec(axes, shape, mesh, rules))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def put_batch(batch: Any, mesh: Mesh, batch_axis: int = 0) -> Any:
    """Moves a tree of host arrays ``[..., batch, length, ...]`` to the mesh; ``batch_axis`` says where.

    Of several processes each brings the same arrays, and moves what its own devices hold.
    """

    def put(array):
        names = (*(None,) * batch_axis, "batch", "length", *(None,) * array.ndim)
        where = sharding(names[: array.ndim], array.shape, mesh)
        if where.is_fully_addressable:
            return jax.device_put(array, where)
        return jax.make_array_from_callback(array.shape, where, lambda part: array[part])

    return jax.tree.map(put, batch)
