"""The compilers for NVIDIA Hopper on a machine without a GPU: does a kernel lower, and what does ptxas make of it?

Mosaic GPU turns a kernel into a module, checking layouts, transforms and the size of shared memory; it is part of JAX.
JAX's CUDA plugin holds LLVM and ptxas, and needs nothing else of CUDA: ``pip install jax-cuda13-plugin flatbuffers``,
the plugin in jaxlib's version, the other for ``jax.export``. What they say is compiled, not measured.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import export
from jax.sharding import AbstractMesh

from pallas_kernels import tiles
from pallas_kernels.gpu_targets import DEVICES, HOPPER

PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")


class Kernel(NamedTuple):
    """What ptxas says of a kernel.

    Attributes:
      registers: of a thread when it is launched; warpgroups may then give and take some.
      spilled_bytes: written by a thread to local memory for want of registers.
      shared_bytes: of a block of threads, barriers included.
      warnings: where ptxas expects it to be slow, such as matrix products that wait for each other.
    """

    name: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    warnings: tuple[str, ...]


class Program(NamedTuple):
    """What the compilers say of a program on one GPU.

    Attributes:
      temporary_bytes: memory beside arguments and results.
      kernels: each kernel of Mosaic GPU once, however often it is called.
    """

    temporary_bytes: int
    kernels: tuple[Kernel, ...]


def lower_for_hopper(f: Callable[..., Any], *shapes: Any, chip: str = "h200") -> str:
    """The module that ``f`` becomes on a Hopper GPU for arguments of these shapes, with each kernel's own within.

    Args:
      shapes: trees of ``jax.ShapeDtypeStruct`` (or arrays).
      chip: "h100" or "h200"; its tile sizes are taken.

    Raises:
      ValueError: another chip, or a kernel that Mosaic GPU refuses, such as where it does not fit in shared memory.
    """
    with _targeting(chip):
        # a function of its own: JAX remembers what it traced, and with which tile sizes
        return jax.jit(lambda *x: f(*x)).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def compile_for_hopper(f: Callable[..., Any], *shapes: Any, chip: str = "h200") -> Program:
    """Compiles ``f`` to machine code for one Hopper GPU and arguments of these shapes.

    Args:
      shapes: trees of ``jax.ShapeDtypeStruct`` (or arrays).
      chip: "h100" or "h200"; its tile sizes are taken.

    Raises:
      ValueError: as for ``lower_for_hopper``.
      RuntimeError: what must be installed first, or why the compilers refuse.
    """
    if missing := lacking():
        raise RuntimeError(missing)
    leaves, tree = jax.tree.flatten(shapes)
    flat = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    run = jax.jit(lambda *x: jax.tree.leaves(f(*jax.tree.unflatten(tree, x))))
    unknown = [export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")]  # to JAX's list of what stays as it is
    with _targeting(chip), tempfile.TemporaryDirectory() as made:
        exported, dump = Path(made) / "exported", Path(made) / "dump"
        dump.mkdir()
        exported.write_bytes(export.export(run, platforms=["cuda"], disabled_checks=unknown)(*flat).serialize())
        temporary = _compile(exported, chip, dump)
        told = sorted(dump.glob("*.ptxas"), key=lambda path: int(path.stem.rpartition("_")[2]))
        return Program(temporary, tuple(_kernel(path) for path in told))


def lacking() -> str | None:
    """What must be installed before ``compile_for_hopper`` can run, or None."""
    there = importlib.util.find_spec
    if there("flatbuffers") and there("jax_plugins") and any(map(there, PLUGINS)):
        return None
    version = importlib.metadata.version("jaxlib")
    return f"ptxas comes with JAX's CUDA plugin: pip install jax-cuda13-plugin=={version} flatbuffers"


@contextlib.contextmanager
def _targeting(chip: str) -> Iterator[None]:
    if chip not in DEVICES:
        raise ValueError(f"chip={chip!r} is not one of {', '.join(DEVICES)}")
    device = jax.sharding.AbstractDevice(device_kind=DEVICES[chip], num_cores=HOPPER["core_count"], platform="gpu")
    with tiles.compiling_for(chip), jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        yield


def _compile(exported: Path, chip: str, dump: Path) -> int:
    """Compiles in a process of its own; what ptxas says goes to ``dump``."""
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_PLATFORMS": "cpu",  # no GPU is looked for
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "MOSAIC_GPU_DUMP_TO": str(dump),
        "MOSAIC_GPU_DUMP_PTXAS": "1",
    }
    command = [sys.executable, "-m", "pallas_kernels.gpu_exported", str(exported), chip]
    ended = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"compilation for {chip} failed:\n{ended.stderr[-2000:]}")
    return int(ended.stdout.split()[-1])


def _kernel(path: Path) -> Kernel:
    """Reads what ptxas said, and in the module it was given how much shared memory a launch asks for."""
    said, module = path.read_text(), path.with_name(f"{path.stem}.mlir-passes.log").read_text()
    used, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    size = re.search(r"dynamic_shared_memory_size (%\w+)", module)
    shared = size and re.search(rf"{size[1]} = arith\.constant (\d+)", module)
    if not (used and spilled and shared):
        raise RuntimeError(f"what ptxas said of {path.stem} is not as expected: {said[:300]}")
    warnings = tuple(re.findall(r"Potential Performance Loss: (.+)", said))
    return Kernel(path.stem.rpartition("_")[0], int(used[1]), int(spilled[1]), int(shared[1]), warnings)
