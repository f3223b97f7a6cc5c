"""Lowering for NVIDIA Hopper on a machine without a GPU: JAX's half of the compiler, without the CUDA half.

Mosaic GPU turns a kernel into a module here, checking layouts, transforms and the size of shared memory; what ptxas and
the chip say of it comes only where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh

from pallas_kernels import tiles

DEVICES = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
SMS = 132


def lower_for_hopper(f: Callable[..., Any], *shapes: Any, chip: str = "h200") -> str:
    """The module that ``f`` becomes on a Hopper GPU for arguments of these shapes, with each kernel's own within.

    Args:
      shapes: trees of ``jax.ShapeDtypeStruct`` (or arrays).
      chip: "h100" or "h200"; its tile sizes are taken.

    Raises:
      ValueError: another chip, or a kernel that Mosaic GPU refuses, such as where it does not fit in shared memory.
    """
    if chip not in DEVICES:
        raise ValueError(f"chip={chip!r} is not one of {', '.join(DEVICES)}")
    device = jax.sharding.AbstractDevice(device_kind=DEVICES[chip], num_cores=SMS, platform="gpu")
    with tiles.compiling_for(chip), jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        # a function of its own: JAX remembers what it traced, and with which tile sizes
        return jax.jit(lambda *x: f(*x)).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
