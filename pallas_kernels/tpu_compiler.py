"""The real TPU compiler on a machine without a TPU: does a program compile, and what will it move and compute?

Needs libtpu (``pip install "jax[tpu]"``). What it says is compiled, not measured.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from pallas_kernels import tiles

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


class Kernel(NamedTuple):
    """A call of a kernel.

    Attributes:
      vmem_bytes: what the compiler assigned to it.
      flops, moved_bytes: its own estimates of work and of HBM traffic.
      least_bytes: the size of its arguments and results.
    """

    name: str
    vmem_bytes: int
    flops: float
    moved_bytes: float
    least_bytes: float


class Program(NamedTuple):
    """What the compiler says of a program on one core.

    Attributes:
      temporary_bytes: HBM beside arguments and results.
      flops: over the whole program, a kernel counting with its own estimate and a loop with one turn.
      kernels: every call of a kernel.
    """

    temporary_bytes: int
    flops: float
    kernels: tuple[Kernel, ...]


def compile_for(chip: str, f: Callable[..., Any], *shapes: Any) -> Program:
    """Compiles ``f`` for one core of a chip ("v5e", "v5p", "v6e", "tpu7x") and arguments of these shapes.

    Args:
      chip: the generation; its tile sizes are taken.
      shapes: trees of ``jax.ShapeDtypeStruct`` (or arrays).

    Raises:
      ValueError: another chip.
      RuntimeError: no libtpu, or the compiler refuses, such as where a kernel does not fit in VMEM.
    """
    device = jax.sharding.SingleDeviceSharding(_device(chip))
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    with tiles.compiling_for(chip), uncached():
        # a function of its own: JAX remembers what it traced, and with which tile sizes
        compiled = jax.jit(lambda *x: f(*x)).trace(*placed).lower(lowering_platforms=("tpu",)).compile()
    told: Any = compiled
    kernels = tuple(read_kernel(line) for line in told.as_text().splitlines() if '"tpu_custom_call"' in line)
    flops = told.cost_analysis().get("flops", 0.0)
    return Program(told.memory_analysis().temp_size_in_bytes, flops, kernels)


def read_kernel(line: str) -> Kernel:
    """The kernel that one line of compiled HLO calls.

    Raises:
      RuntimeError: the line is no call of a kernel.
    """
    head = re.match(r"\s*(?:ROOT )?%(.+?)(?:\.\d+)? = (.*?) custom-call\(", line)
    operands = re.search(r"operand_layout_constraints=\{(.*?)\}, \w+=\S", line)
    if head is None or operands is None:
        raise RuntimeError(f"compiled HLO is not as expected: {line[:300]}")
    number = lambda key: float(found[1]) if (found := re.search(key + r'":"?(\d+)', line)) else 0.0  # noqa: E731
    vmem = re.search(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"', line)
    least = _bytes(head[2]) + _bytes(operands[1])
    return Kernel(head[1], int(vmem[1]) if vmem else 0, number('"flops'), number('"bytes_accessed'), least)


def _bytes(shapes: str) -> float:
    bits = lambda kind: int(re.findall(r"\d+", kind)[0]) if kind != "pred" else 8  # noqa: E731
    sizes = re.findall(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]", shapes)
    return sum(math.prod(map(int, filter(None, dims.split(",")))) * bits(kind) / 8 for kind, dims in sizes)


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Nothing compiled inside goes to JAX's cache on disk: it cannot hold programs for devices that are not there."""
    config: Any = jax.config
    cached = config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


@functools.cache
def _device(chip: str) -> Any:
    if chip not in TOPOLOGIES:
        raise ValueError(f"chip={chip!r} is not one of {', '.join(TOPOLOGIES)}")
    return devices(TOPOLOGIES[chip])[0]


def devices(name: str) -> list[Any]:
    """The devices of a slice such as "v5p:4x4x8", or of two such ("v5p:4x4x8@2"), to compile for.

    Raises:
      RuntimeError: no libtpu, or there is no such slice.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nobody fights for chips: let others compile meanwhile
    name, _, slices = name.partition("@")
    one = set(name.partition(":")[2].split("x")) == {"1"}
    asked: dict[str, Any] = {"chips_per_host_bounds": [1, 1, 1]} if one else {}
    asked |= {"num_slices": int(slices)} if slices else {}
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **asked).devices)
