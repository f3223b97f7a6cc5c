"""What XLA's TPU compiler is asked for so that a mesh computes while its links are at work.

Not for every program: of some shapes, such as attention on v5p with as many key as query heads, the compiler of libtpu
dies in a check of its own ("BarrierMegacore in primary or secondary region"), and takes the process along.
"""

from __future__ import annotations

from jax.sharding import Mesh

# Weights of a layer are gathered, and gradients scattered, while products and kernels run: in as many parts as there
# are instructions to hide them behind. By themselves only permutations overlap with kernels.
_ASYNCHRONOUS = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_enable_async_collective_fusion_with_mosaic_custom_call": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_tpu_scoped_vmem_limit_kib": 40960,  # of a kernel with a collective inside; without, a kernel says it itself
}


def compiler_options(mesh: Mesh | None) -> dict[str, bool | int]:
    """For ``jax.jit`` of a program on this mesh; nothing but for several TPUs."""
    if mesh is None or mesh.size == 1 or mesh.devices.flat[0].platform != "tpu":
        return {}
    return dict(_ASYNCHRONOUS)
