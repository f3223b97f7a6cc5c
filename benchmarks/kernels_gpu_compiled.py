"""What does ptxas make of the kernels for NVIDIA Hopper at the released models' sizes?

Compiled by XLA, Mosaic GPU and ptxas without a GPU; nothing here is measured on one. Of each kernel: the registers of a
thread at its launch, what does not fit in them, the shared memory of a block of threads, and where ptxas expects it to
be slow; of each program, memory beside arguments and results. MiniMax-M2 has all its experts on one GPU, as in
`kernels_gpu.py`; the others have one GPU's share.

    pip install jax-cuda13-plugin flatbuffers  # the plugin in jaxlib's version; no other CUDA library
    python benchmarks/kernels_gpu_compiled.py [--chips=h100,h200] [--families=minimax_m2,…]
"""

from __future__ import annotations

import time

import measure
from kernels_gpu_moe import EXPERTS, TOKENS, TOP_K


def main() -> None:
    """Every case of every family; one that is refused, that spills or that ptxas warns of fails the script."""
    parser = measure.parser(__doc__, "kernels_gpu_compiled")
    parser.add_argument("--chips", default="h100,h200", help="with commas between")
    parser.add_argument("--families", default="minimax_m2,glm_4_6,kimi_k2,minimax_m1", help="with commas between")
    options = parser.parse_args()
    measure.start(2)
    from pallas_kernels.full_size import FAMILIES, ROWS, cases
    from pallas_kernels.gpu_compiler import compile_for_hopper, lacking

    if missing := lacking():
        raise SystemExit(missing)
    found, poor = [], []
    print(f"{'':52} {'registers':>9} {'spilled':>8} {'shared':>10}")
    for chip in options.chips.split(","):
        for name in options.families.split(","):
            whole = name == "minimax_m2"
            family = FAMILIES[name]._replace(experts=EXPERTS) if whole else FAMILIES[name]
            for case in cases(family, "gpu", TOKENS * TOP_K if whole else ROWS):
                title = f"{chip} {name:10} {case.kernel} {case.mode}"
                row = {"chip": chip, "family": name, "kernel": case.kernel, "mode": case.mode}
                start = time.perf_counter()
                try:
                    program = compile_for_hopper(case.run, *case.shapes, chip=chip)
                except (RuntimeError, ValueError) as refusal:  # what the compilers say is the result
                    found.append({**row, "refused": str(refusal)[-500:]})
                    poor.append(title)
                    print(f"{title:52} refused: {str(refusal)[-120:]}", flush=True)
                    continue
                row |= {
                    "compile_seconds": time.perf_counter() - start,
                    "temporary_bytes": program.temporary_bytes,
                    "kernels": [kernel._asdict() for kernel in program.kernels],
                }
                found.append(row)
                print(f"{title:52} {program.temporary_bytes / 1e6:.0f} MB beside arguments and results")
                for kernel in program.kernels:
                    numbers = f"{kernel.registers:9} {kernel.spilled_bytes:6} B {kernel.shared_bytes:8} B"
                    print(f"    {kernel.name:48} {numbers}", *kernel.warnings, flush=True)
                if not program.kernels or any(kernel.spilled_bytes or kernel.warnings for kernel in program.kernels):
                    poor.append(title)
    measure.write(options.output, {"cases": found})
    if poor:
        raise SystemExit("not as they should be: " + ", ".join(poor))


if __name__ == "__main__":
    main()
