"""``python -m pallas_kernels.gpu_exported FILE CHIP``: compiles an exported program for a GPU that need not be there.

Prints the bytes of memory it takes beside arguments and results. A process of its own, since XLA compiles a kernel once
in a process, and tells of it in the files that ``MOSAIC_GPU_DUMP_TO`` asks for only then.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from pallas_kernels.gpu_targets import target_config


def temporary_bytes(exported: Path, chip: str) -> int:
    """Compiles it, and tells how much memory it takes beside arguments and results."""
    program = jax.export.deserialize(bytearray(exported.read_bytes()))
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=target_config(chip)
    )
    device = jax.sharding.SingleDeviceSharding(topology.devices[0])
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for x in program.in_avals]
    compiled: Any = jax.jit(program.call).trace(*shapes).lower(lowering_platforms=("cuda",)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    print(temporary_bytes(Path(sys.argv[1]), sys.argv[2]))
