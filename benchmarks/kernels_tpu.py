"""Do the kernels compile for every TPU generation at the released models' sizes, and how near the minimum do they stay?

Compiled by the real TPU compiler, without a TPU; nothing here is measured on one. FLOPs of a program are given as a
multiple of what the maths needs; HBM traffic of its kernels, by the kernels' own estimates, as a multiple of reading
their arguments and writing their results once; VMEM as the compiler assigned it to the largest kernel.

    pip install -e ".[tpu]"
    python benchmarks/kernels_tpu.py [--chips=v5e,v5p,v6e,tpu7x] [--families=minimax_m2,…]
"""

from __future__ import annotations

import time

import measure


def main() -> None:
    """Every case of every family for every chip; one that is refused is named and fails the script."""
    parser = measure.parser(__doc__, "kernels_tpu")
    parser.add_argument("--chips", default="v5e,v5p,v6e,tpu7x", help="generations, with commas between")
    parser.add_argument("--families", default="minimax_m2,glm_4_6,kimi_k2,minimax_m1", help="with commas between")
    options = parser.parse_args()
    measure.start(2)
    from pallas_kernels.full_size import FAMILIES, cases
    from pallas_kernels.tpu_compiler import compile_for

    found = []
    print(f"{'':48} {'compile':>8} {'HBM temp':>9} {'VMEM':>8} {'FLOPs':>6} {'bytes':>6}")
    for chip in options.chips.split(","):
        for name in options.families.split(","):
            for case in cases(FAMILIES[name]):
                title = f"{chip:6} {name:11} {case.kernel} {case.mode}"
                start, row = (
                    time.perf_counter(),
                    {"chip": chip, "family": name, "kernel": case.kernel, "mode": case.mode},
                )
                try:
                    program = compile_for(chip, case.run, *case.shapes)
                except Exception as refusal:  # whatever the compiler says is the result
                    found.append({**row, "refused": str(refusal)[:500]})
                    print(f"{title:48} refused: {str(refusal)[:120]}", flush=True)
                    continue
                row |= {
                    "compile_seconds": time.perf_counter() - start,
                    "temporary_bytes": program.temporary_bytes,
                    "flops_to_least": program.flops / case.least_flops,
                    "kernels": [kernel._asdict() for kernel in program.kernels],
                }
                least = sum(kernel.least_bytes for kernel in program.kernels)
                row["bytes_to_least"] = sum(k.moved_bytes for k in program.kernels) / least if least else None
                row["vmem_bytes"] = max((kernel.vmem_bytes for kernel in program.kernels), default=0)
                found.append(row)
                print(
                    f"{title:48} {row['compile_seconds']:7.1f}s {row['temporary_bytes'] / 1e6:6.0f} MB"
                    f" {row['vmem_bytes'] / 1e6:5.1f} MB {row['flops_to_least']:5.2f}x"
                    f" {row['bytes_to_least'] or float('nan'):5.2f}x",
                    flush=True,
                )
    measure.write(options.output, {"cases": found})
    if any("refused" in row for row in found):
        raise SystemExit("the TPU compiler refused some of them")


if __name__ == "__main__":
    main()
