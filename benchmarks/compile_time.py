"""How much longer does a deep model's training step take to compile than a shallow one's?

Compiles the SFT step (forward, backward, AdamW) of the MiniMax-M2 architecture with 62 layers and with 8, the same in
all else, in turns and without any cache. Layers are scanned, so the ratio should be close to 1.

    python benchmarks/compile_time.py [--repetitions=3]
"""

from __future__ import annotations

import dataclasses
import statistics
import time

import measure

DEPTHS = (62, 8)


def main() -> None:
    """Both depths in turns."""
    parser = measure.parser(__doc__, "compile_time")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    measure.start(options.cores)
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    seconds: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for turn in range(options.repetitions):
        for depth in DEPTHS[:: 1 if turn % 2 else -1]:
            seconds[depth].append(compile_seconds(depth))
            print(f"{depth} layers: {seconds[depth][-1]:.2f} s", flush=True)
    medians = {depth: statistics.median(spent) for depth, spent in seconds.items()}
    measure.show("compilation of an SFT step", ("layers", "seconds"), list(medians.items()))
    print(f"ratio {medians[62] / medians[8]:.3f}")
    measure.write(options.output, {"seconds": seconds, "ratio": medians[62] / medians[8]})


def compile_seconds(depth: int) -> float:
    """Tracing, lowering and compiling; no weight is ever made."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from posttrain_jax.models import minimax_m2
    from posttrain_jax.models.decoder import Decoder, abstract
    from posttrain_jax.parallel.mesh import make_mesh
    from posttrain_jax.run.recipe import Pace
    from posttrain_jax.stages.optimizing import make_optimizing
    from posttrain_jax.stages.sft import make_loss
    from posttrain_jax.stages.step import abstract_state, make_update

    jax.clear_caches()
    arch = dataclasses.replace(minimax_m2.TINY, layers=depth, hidden=256, expert_ffn=128, experts=16, vocab=2048)
    mesh = make_mesh(devices=jax.local_devices()[:1])
    began = time.perf_counter()
    graph, weights = abstract(lambda: Decoder(arch, rngs=nnx.Rngs(0)), mesh)
    optimizer = make_optimizing(Pace(), 100, arch).optimizer
    state = abstract_state(weights, optimizer, mesh)
    update = make_update(optimizer, make_loss(graph), state)
    integers = jax.ShapeDtypeStruct((2, 4, 256), jnp.int32)
    batch = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), integers)
    batch["mask"] = jax.ShapeDtypeStruct((2, 4, 256), jnp.float32)
    update.lower(state, batch, 2).compile()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
