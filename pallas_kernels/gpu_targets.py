"""What XLA must know of a GPU to compile for it where there is none: NVIDIA's published numbers, as data.

From the H100 and H200 data sheets and the tables of compute capability 9.0 in the CUDA programming guide.
"""

from __future__ import annotations

KIB = 1024
HOPPER = {
    "threads_per_warp": 32,
    "threads_per_block_limit": 1024,
    "threads_per_core_limit": 2048,  # a core is an SM
    "core_count": 132,
    "fpus_per_core": 128,
    "registers_per_block_limit": 64 * KIB,
    "registers_per_core_limit": 64 * KIB,
    "shared_memory_per_block": 48 * KIB,
    "shared_memory_per_block_optin": 227 * KIB,
    "shared_memory_per_core": 228 * KIB,
    "l2_cache_size": 50 * KIB * KIB,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "clock_rate_ghz": 1.98,
}
CHIPS = {
    "h100": {"memory_bandwidth": 3_350_000_000_000, "device_memory_size": 80_000_000_000},
    "h200": {"memory_bandwidth": 4_800_000_000_000, "device_memory_size": 141_000_000_000},
}
DEVICES = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}


def target_config(chip: str) -> str:
    """The chip as XLA's ``GpuTargetConfigProto``, in text form."""
    numbers = "\n".join(f"  {name}: {value}" for name, value in {**HOPPER, **CHIPS[chip]}.items())
    return (
        f"gpu_device_info {{\n{numbers}\n  cuda_compute_capability {{ major: 9 }}\n}}\n"
        f'platform_name: "CUDA"\ndevice_description_str: "{DEVICES[chip]}"\n'
    )
