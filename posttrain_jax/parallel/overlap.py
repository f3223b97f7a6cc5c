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

# By itself tpu7x's compiler turns collectives and gathers into programs for the sparse cores. With either of the two it
# is not done with MiniMax-M2's prefill after six minutes; without both it takes three.
_ON_TENSOR_CORES = {
    **{
        f"xla_tpu_enable_sparse_core_collective_offload_{collective}": False
        for collective in ("all_gather", "all_reduce", "reduce_scatter", "nd_reduce_scatter", "ragged_all_to_all")
        + ("dense_all_to_all", "2d_all_gather", "3d_all_gather")
    },
    **{
        f"xla_tpu_enable_offloading_{work}_to_sparsecore": False
        for work in ("gather", "scatter", "sort", "copy", "reduce", "reshape")
    },
    "xla_tpu_offload_gather_to_sparsecore": False,
}


def compiler_options(mesh: Mesh | None) -> dict[str, bool | int]:
    """For ``jax.jit`` of a training step on this mesh; nothing but for several TPUs."""
    return dict(_ASYNCHRONOUS) if _several_tpus(mesh) else {}


def sampling_options(mesh: Mesh | None) -> dict[str, bool | int]:
    """For ``jax.jit`` of a program that reads prompts or decodes on this mesh; nothing but for several tpu7x."""
    return dict(_ON_TENSOR_CORES) if _several_tpus(mesh, "7x") else {}


def _several_tpus(mesh, kind=""):
    if mesh is None or mesh.size == 1:
        return False
    device = mesh.devices.flat[0]
    return device.platform == "tpu" and kind in device.device_kind
