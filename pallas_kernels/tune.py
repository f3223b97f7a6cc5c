"""``python -m pallas_kernels.tune``: finds the fastest tile sizes on the attached chip, writes them to ``tiles.json``.

Every candidate is timed at the full sizes of one model, forward and backward, or decoding where that is all there is;
what does not compile is passed over.
Without a TPU, ``--check`` compiles the table as it is for every generation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import tiles
from pallas_kernels.backends import device_form
from pallas_kernels.full_size import FAMILIES, Case, cases
from pallas_kernels.tpu_compiler import TOPOLOGIES, compile_for

# table's kernel -> the kernel whose time counts, the model, and the sizes to try
CANDIDATES: dict[str, tuple[str, str, dict[str, list[int]]]] = {
    "lightning_attention": ("lightning_attention", "minimax_m1", {"chunk": [128, 256, 512], "heads": [2, 4, 8, 16]}),
    "grouped_matmul": ("expert_ffn", "minimax_m2", {"rows": [128, 256, 512, 1024], "strip": [128, 256]}),
    "transposed_grouped_matmul": (
        "expert_ffn",
        "minimax_m2",
        {"rows": [256, 512, 1024], "inner": [768, 1536, 3072], "outer": [768, 1536]},
    ),
    "softmax_attention": (
        "softmax_attention",
        "minimax_m2",
        {"queries": [256, 512, 1024], "keys": [256, 512, 1024], "heads": [2, 4, 8]},
    ),
    "softmax_attention_backward": (
        "softmax_attention",
        "minimax_m2",
        {"queries": [256, 512, 1024], "keys": [256, 512, 1024], "heads": [2, 4, 8]},
    ),
    "latent_attention_step": ("latent_attention_step", "kimi_k2", {"tokens": [512, 1024, 2048]}),
    "token_logprobs": ("token_logprobs", "minimax_m2", {"tokens": [256, 512, 1024], "vocab": [512, 1024, 2048]}),
}


def main(arguments: list[str] | None = None) -> None:
    """Tunes what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", default=list(CANDIDATES), help="; ".join(CANDIDATES))
    parser.add_argument("--check", action="store_true", help="compile the table for every generation; needs no TPU")
    options = parser.parse_args(arguments)
    if unknown := set(options.kernels) - set(CANDIDATES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(CANDIDATES)}")
    if options.check:
        return check(options.kernels)
    if device_form() != "tpu":
        parser.error(f"no TPU is attached ({jax.devices()[0].device_kind}); --check compiles the table without one")
    for kernel in options.kernels:
        found = tune(kernel)
        table = {**tiles.table(), kernel: {**tiles.table()[kernel], tiles.chip(): found}}
        tiles.TABLE.write_text(json.dumps(table, indent=1) + "\n")
        tiles.table.cache_clear()
        print(f"{kernel} on {tiles.chip()}: {found}")


def tune(kernel: str) -> dict[str, int]:
    """The sizes of the candidate with the shortest time, forward and backward together."""
    name, family, choices = CANDIDATES[kernel]
    chip, best = tiles.chip(), (float("inf"), tiles.lookup(kernel))
    chosen = _cases(name, family)
    for sizes in ({**tiles.lookup(kernel), **x} for x in _combinations(choices)):
        with tiles.compiling_for(chip, **{kernel: sizes}):
            try:
                seconds = sum(_seconds(case, FAMILIES[family].experts) for case in chosen)
            except (ValueError, RuntimeError) as refusal:
                print(f"  {sizes} refused: {str(refusal)[:100]}")
                continue
        print(f"  {sizes} {seconds * 1e3:.2f} ms")
        best = min(best, (seconds, sizes), key=lambda x: x[0])
    return best[1]


def check(kernels: list[str]) -> None:
    """Compiles what the table says, forward and backward, for every generation."""
    for chip, kernel in itertools.product(TOPOLOGIES, kernels):
        name, family, _ = CANDIDATES[kernel]
        for case in _cases(name, family):
            program = compile_for(chip, case.run, *case.shapes)
            vmem = max(k.vmem_bytes for k in program.kernels)
            print(f"{chip} {kernel} {case.mode}: compiles, {vmem / 2**20:.0f} MiB of VMEM")


def _cases(name: str, family: str) -> list[Case]:
    """Forward and backward; of a kernel that only decodes, that."""
    found = [case for case in cases(FAMILIES[family]) if case.kernel == name]
    return [case for case in found if case.mode in ("forward", "backward")] or found


def _combinations(choices: dict[str, list[int]]) -> Iterator[dict[str, int]]:
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def _seconds(case: Case, experts: int, turns: int = 5) -> float:
    draw = np.random.default_rng(0)

    def some(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(shape.dtype, jnp.integer):  # experts; words may be anything
            return jnp.asarray(draw.integers(*(case.integers or (0, experts)), shape.shape), shape.dtype)
        return jnp.asarray(-draw.random(shape.shape), shape.dtype)

    arguments = jax.tree.map(some, case.shapes)
    run: Any = jax.jit(lambda *x: case.run(*x))
    jax.block_until_ready(run(*arguments))
    start = time.perf_counter()
    jax.block_until_ready([run(*arguments) for _ in range(turns)])
    return (time.perf_counter() - start) / turns


if __name__ == "__main__":
    main()
