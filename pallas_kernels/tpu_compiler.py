"""The real TPU compiler on a machine without a TPU: does a program compile, and what will it move and compute?

Needs libtpu (``pip install "jax[tpu]"``). What it says is compiled, not measured.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from pallas_kernels import tiles

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


class Program(NamedTuple):
    """What the compiler says of a program on one core.

    Attributes:
      temporary_bytes: HBM beside arguments and results.
      argument_bytes, output_bytes: HBM of arguments and of results.
      flops, bytes_accessed: over the whole program, a kernel counting with its own estimate.
    """

    temporary_bytes: int
    argument_bytes: int
    output_bytes: int
    flops: float
    bytes_accessed: float


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
    with tiles.compiling_for(chip):
        # a function of its own: JAX remembers what it traced, and with which tile sizes
        compiled = jax.jit(lambda *x: f(*x)).trace(*placed).lower(lowering_platforms=("tpu",)).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return Program(
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        cost.get("flops", 0.0),
        cost.get("bytes accessed", 0.0),
    )


@functools.cache
def _device(chip: str) -> Any:
    if chip not in TOPOLOGIES:
        raise ValueError(f"chip={chip!r} is not one of {', '.join(TOPOLOGIES)}")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices[0]
