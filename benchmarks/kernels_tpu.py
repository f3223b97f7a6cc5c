"""Do the kernels compile for every TPU generation at the released models' sizes, and how near the minimum do they stay?

Compiled by the real TPU compiler, without a TPU; nothing here is measured on one. FLOPs of a program are given as a
multiple of what the maths needs; HBM traffic of its kernels, by the kernels' own estimates, as a multiple of reading
their arguments and writing their results once; VMEM as the compiler assigned it to the largest kernel. A row is in the
table as soon as it is there, in the place of the one before it, so that a part can be made again by itself.

    pip install -e ".[tpu]"
    python benchmarks/kernels_tpu.py [--chips=v5e,v5p,v6e,tpu7x] [--families=minimax_m2,…] [--kernels=token_logprobs,…]
"""

from __future__ import annotations

import time

import measure


def main() -> None:
    """Every case of every family for every chip; one that is refused is named and fails the script."""
    parser = measure.parser(__doc__, "kernels_tpu")
    parser.add_argument("--chips", default="v5e,v5p,v6e,tpu7x", help="generations, with commas between")
    parser.add_argument("--families", default="minimax_m2,glm_4_6,kimi_k2,minimax_m1", help="with commas between")
    parser.add_argument("--kernels", help="these alone, with commas between")
    options = parser.parse_args()
    measure.start(2)
    from pallas_kernels.full_size import FAMILIES, cases

    refused = []
    print(f"{'':48} {'compile':>8} {'HBM temp':>9} {'VMEM':>8} {'FLOPs':>6} {'bytes':>6}")
    for chip in options.chips.split(","):
        for family in options.families.split(","):
            for case in cases(FAMILIES[family]):
                if options.kernels and case.kernel not in options.kernels.split(","):
                    continue
                key = {"chip": chip, "family": family, "kernel": case.kernel, "mode": case.mode}
                found = compiled(chip, case)
                measure.put(options.output, "cases", key, found)
                title = f"{chip:6} {family:11} {case.kernel} {case.mode}"
                print(f"{title:48} {_said(found)}", flush=True)
                refused += [title] if "refused" in found else []
    if refused:
        raise SystemExit(f"refused: {'; '.join(refused)}")


def compiled(chip: str, case) -> dict:
    """What the compiler made of a case, or what it said against it."""
    from pallas_kernels.tpu_compiler import compile_for

    began = time.perf_counter()
    try:
        program = compile_for(chip, case.run, *case.shapes)
    except Exception as refusal:  # whatever the compiler says is the result
        return {"refused": str(refusal)[:500]}
    least = sum(kernel.least_bytes for kernel in program.kernels)
    return {
        "compile_seconds": time.perf_counter() - began,
        "temporary_bytes": program.temporary_bytes,
        "flops_to_least": program.flops / case.least_flops,
        "kernels": [kernel._asdict() for kernel in program.kernels],
        "bytes_to_least": sum(k.moved_bytes for k in program.kernels) / least if least else None,
        "vmem_bytes": max((kernel.vmem_bytes for kernel in program.kernels), default=0),
    }


def _said(row):
    if "refused" in row:
        return f"refused: {row['refused'][:120]}"
    return (
        f"{row['compile_seconds']:7.1f}s {row['temporary_bytes'] / 1e6:6.0f} MB {row['vmem_bytes'] / 1e6:5.1f} MB"
        f" {row['flops_to_least']:5.2f}x {row['bytes_to_least'] or float('nan'):5.2f}x"
    )


if __name__ == "__main__":
    main()
