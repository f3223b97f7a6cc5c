"""What does Muon cost: of a step on the tiny model, of a step of the full one, and spread over eight devices?

* tiny: seconds of the whole SFT update and of the optimizer alone, in turns.
* full: floating-point operations of orthogonalising all of MiniMax-M2's matrices, by the compiler's count for each
  shape, next to 8 operations a parameter and token (forward, backward, and forward again) and attention's products.
* eight devices: operations and bytes moved on each, dealt out, and as the compiler shards the plain form; with
  ``--topology`` also compiled for TPUs, which need not be there (``pip install -e ".[tpu]"``).

    python benchmarks/muon_cost.py [--topology=v5p:2x2x2]
"""

from __future__ import annotations

import collections
import re

import measure

BYTES = {"f32": 4, "bf16": 2, "s32": 4, "pred": 1}


def main() -> None:
    """The three questions."""
    parser = measure.parser(__doc__, "muon_cost")
    parser.add_argument("--repetitions", type=int, default=15, help="timed turns")
    parser.add_argument("--topology", default="", help="a TPU slice of eight chips to compile for as well")
    options = parser.parse_args()
    measure.start(2)
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_num_cpu_devices", 8)
    found = {"tiny": on_tiny(options.repetitions), "full": on_full(), "eight_devices": on_eight(jax.devices(), 1)}
    if options.topology:
        chips = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
        found[options.topology] = on_eight(list(chips), 6)
    tiny, full = found["tiny"], found["full"]
    measure.show(
        "Muon's share of a step: milliseconds on tiny, PFLOP on full",
        ("model", "step", "optimizer", "share in percent"),
        [
            ("tiny, muon", 1e3 * tiny["step"]["muon"], 1e3 * tiny["alone"]["muon"], 100 * tiny["share"]["muon"]),
            (
                "tiny, adamw",
                1e3 * tiny["step"]["adamw"],
                1e3 * tiny["alone"]["adamw"],
                100 * tiny["share"]["adamw"],
            ),
            ("full, muon", full["step_flops"] / 1e15, full["muon_flops"] / 1e15, 100 * full["share"]),
        ],
    )
    for place in list(found)[2:]:
        measure.show(
            f"{place}: work and traffic of each",
            ("form", "GFLOP", "MB moved", "collectives"),
            [(name, f["flops"] / 1e9, f["bytes"] / 1e6, f["collectives"]) for name, f in found[place].items()],
        )
    measure.write(options.output, found)


def on_tiny(repetitions: int) -> dict:
    """Median seconds of an update and of its optimizer alone, for both optimizers."""
    import statistics

    import jax
    import jax.numpy as jnp
    from flax import nnx

    from posttrain_jax.parallel.mesh import make_mesh
    from posttrain_jax.stages import sft
    from posttrain_jax.stages.optimizing import make_optimizing
    from posttrain_jax.stages.setup import make_model
    from posttrain_jax.stages.step import fresh_state, make_update

    sides, mesh = {}, make_mesh(devices=jax.devices()[:1])
    for name in ("adamw", "muon"):
        recipe = measure.recipe("tiny", f"optimizer.name={name}")
        graph, weights = nnx.split(make_model(recipe)())
        optimizer = make_optimizing(
            recipe.sft.optimizer, recipe.sft.steps, recipe.model, algorithm=recipe.optimizer
        ).optimizer
        shape = (1, recipe.sft.rows, recipe.sft.length)
        tokens = jax.random.randint(jax.random.key(0), shape, 0, recipe.model.vocab)
        one = jnp.ones(shape, jnp.int32)
        positions = jnp.broadcast_to(jnp.arange(shape[2]), shape)
        batch = {"tokens": tokens, "targets": tokens, "segment_ids": one, "positions": positions, "mask": 1.0 * one}
        held = {"state": fresh_state(weights, optimizer, mesh)}
        update = make_update(optimizer, sft.make_loss(graph), held["state"])
        alone = jax.jit(lambda g, s, w, o=optimizer: o.update(g, s, w))
        gradients = jax.tree.map(lambda w: jnp.sin(3 * w), weights)
        weights = jax.tree.map(jnp.copy, weights)
        moments = jax.jit(optimizer.init)(weights)

        def step(held=held, update=update, batch=batch):
            held["state"], metrics = update(held["state"], batch, 1)
            jax.block_until_ready(metrics)

        def only(alone=alone, g=gradients, s=moments, w=weights):
            jax.block_until_ready(alone(g, s, w))

        sides |= {f"step {name}": step, f"alone {name}": only}
    seconds = {name: statistics.median(s) for name, s in measure.in_turns(sides, repetitions, warmup=2).items()}
    step = {name: seconds[f"step {name}"] for name in ("adamw", "muon")}
    alone = {name: seconds[f"alone {name}"] for name in ("adamw", "muon")}
    return {"step": step, "alone": alone, "share": {name: alone[name] / step[name] for name in step}}


def on_full() -> dict:
    """Operations of Muon on MiniMax-M2, and of a step of the recipe's batch."""
    import jax
    from flax import nnx

    from posttrain_jax.models.decoder import Decoder
    from posttrain_jax.optim.names import is_hidden_matrix
    from posttrain_jax.optim.newton_schulz import orthogonalise

    recipe = measure.recipe("full")
    weights = nnx.state(nnx.eval_shape(lambda: Decoder(recipe.model, rngs=nnx.Rngs(0))))
    matrices = collections.Counter()
    for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
        if is_hidden_matrix(path, leaf):
            *stack, rows, columns = leaf.shape
            matrices[tuple(sorted((rows, columns)))] += int(jax.numpy.prod(jax.numpy.array(stack)))
    muon = sum(count * flops(orthogonalise, shape) for shape, count in matrices.items())
    tokens = recipe.sft.rows * recipe.sft.length
    arch = recipe.model
    attention = arch.layers * 4 * 2 * recipe.sft.length * arch.heads * arch.head_dim  # causal: half of length squared
    a_token = 8 * arch.active_parameters + attention
    step, needed = a_token * tokens, muon / 0.03 / a_token
    return {
        "matrices": {f"{a}x{b}": n for (a, b), n in matrices.items()},
        "muon_flops": muon,
        "tokens": tokens,
        "step_flops": step,
        "share": muon / (muon + step),
        "tokens_for_3_percent": needed,
    }


def flops(function, shape) -> float:
    """The compiler's count of one call."""
    import jax
    import jax.numpy as jnp

    return jax.jit(function).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).cost_analysis()["flops"]


def on_eight(devices: list, size: int) -> dict:
    """Attention and experts, ``size`` times 512 wide, sharded fsdp 4 and expert 2: work and traffic of one device."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from posttrain_jax.optim.newton_schulz import orthogonalise, orthogonalise_all
    from posttrain_jax.parallel.mesh import make_mesh

    mesh = make_mesh(data=1, fsdp=4, expert=2, devices=devices)
    shapes = {(8, 512 * size, 768 * size): P(None, "fsdp"), (2, 16, 512 * size, 256 * size): P(None, "expert", "fsdp")}
    where = [NamedSharding(mesh, spec) for spec in shapes.values()]
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=w) for s, w in zip(shapes, where, strict=True)]
    forms = {
        "dealt out": lambda xs: orthogonalise_all(xs, where),
        "left to the compiler": lambda xs: [orthogonalise(x) for x in xs],
        "gathered everywhere": lambda xs: [
            orthogonalise(jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))) for x in xs
        ],
    }
    found = {}
    for name, form in forms.items():
        program = jax.jit(form, out_shardings=where).lower(arrays).compile()
        moved, count = traffic(program.as_text())
        found[name] = {"flops": program.cost_analysis()["flops"], "bytes": moved, "collectives": count}
    alone = sum(flops(orthogonalise, shape) for shape in shapes)
    found["one device alone"] = {"flops": alone, "bytes": 0, "collectives": "none"}
    return found


def traffic(program: str) -> tuple[int, str]:
    """Bytes that the collectives of a compiled program put out on one device, and which they are."""
    moved, kinds = 0, collections.Counter()
    for line in program.splitlines():
        found = re.search(r"= (.*?) (all-to-all|all-gather|all-reduce|collective-permute|reduce-scatter)\(", line)
        if found:
            kinds[found[2]] += 1
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", found[1]):
                size = BYTES.get(dtype, 4)
                for dim in filter(None, dims.split(",")):
                    size *= int(dim)
                moved += size
    return moved, ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "none"


if __name__ == "__main__":
    main()
