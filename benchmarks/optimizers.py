"""How many steps does Muon need for the loss that AdamW reaches?

Trains the tiny MiniMax-M2 on the recipe's SFT data with each optimizer, the same batches for both. Each takes the
learning rate, out of a grid, with the lowest held-out loss on the first seed; then all seeds are run with it. The
answer is the first step at which Muon's held-out loss is at or below AdamW's last one, as a part of AdamW's steps.
Counts steps, so a busy machine makes no difference.

    python benchmarks/optimizers.py [--steps=500] [--seeds=0,1,2] [--names=adamw,muon]
"""

from __future__ import annotations

import statistics

import measure

GRID = {"adamw": (2.5e-3, 5e-3, 1e-2, 2e-2), "muon": (5e-3, 1e-2, 2e-2, 4e-2), "muonclip": (1e-2, 2e-2)}
EVERY = 20  # steps between two looks at the held-out loss


def main() -> None:
    """The grid on the first seed, then every seed at the best rates."""
    parser = measure.parser(__doc__, "optimizers")
    parser.add_argument("--steps", type=int, default=500, help="steps of a run")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of model and order of data")
    parser.add_argument("--names", default="adamw,muon", help="optimizers; the first is what the others are held to")
    options = parser.parse_args()
    measure.start(2)
    seeds, names = [int(seed) for seed in options.seeds.split(",")], options.names.split(",")
    tuning = {name: {rate: run(name, rate, seeds[0], options.steps) for rate in GRID[name]} for name in names}
    best = {name: min(runs, key=lambda rate, runs=runs: runs[rate][-1][1]) for name, runs in tuning.items()}
    curves = {
        name: {s: tuning[name][best[name]] if s == seeds[0] else run(name, best[name], s, options.steps) for s in seeds}
        for name in names
    }
    first, rows, shares = names[0], [], {}
    for name in names[1:]:
        for seed in seeds:
            goal = curves[first][seed][-1][1]
            step = next((step for step, loss in curves[name][seed] if loss <= goal), None)
            shares.setdefault(name, []).append(step and step / options.steps)
            rows.append((name, seed, best[name], goal, curves[name][seed][-1][1], step or "never"))
    measure.show(
        f"steps to {first}'s held-out loss after {options.steps} steps ({first} at {best[first]:g})",
        ("optimizer", "seed", "learning rate", f"{first}'s loss", "own last loss", "steps"),
        rows,
    )
    reached = {name: [s for s in found if s is not None] for name, found in shares.items()}
    measure.write(
        options.output,
        {
            "steps": options.steps,
            "best_learning_rate": best,
            "share_of_steps": shares,
            "mean_share": {name: statistics.mean(found) for name, found in reached.items() if found},
            "tuning": {name: {rate: curve[-1][1] for rate, curve in runs.items()} for name, runs in tuning.items()},
            "curves": curves,
        },
    )


def run(name: str, rate: float, seed: int, steps: int) -> list[tuple[int, float]]:
    """Held-out losses, in nats a token, at every so many steps of a run."""
    import jax

    from posttrain_jax.data import pipeline, sources, tasks
    from posttrain_jax.models.decoder import abstract, materialise
    from posttrain_jax.parallel.mesh import make_mesh, put_batch
    from posttrain_jax.stages import sft
    from posttrain_jax.stages.optimizing import make_optimizing
    from posttrain_jax.stages.setup import make_chat, make_model
    from posttrain_jax.stages.step import fresh_state

    overrides = (f"seed={seed}", f"sft.steps={steps}", f"optimizer.name={name}", f"sft.optimizer.learning_rate={rate}")
    recipe = measure.recipe("tiny", *overrides)
    chat, mesh = make_chat(recipe), make_mesh(devices=jax.local_devices()[:1])

    def batches(tasks_seed):
        source = sources.open(
            "tasks",
            names=recipe.tasks.names or tasks.TASKS,
            max_level=recipe.tasks.max_level,
            system=recipe.tasks.system,
            seed=tasks_seed,
            careful_share=recipe.sft.careful_share,
        )
        rows, length = recipe.sft.rows, recipe.sft.length
        return pipeline.batches(source, chat, rows=rows, length=length, seed=seed, on_too_long="error")

    graph, weights = abstract(make_model(recipe), mesh)
    optimizing = make_optimizing(recipe.sft.optimizer, steps, recipe.model, algorithm=recipe.optimizer)
    state = fresh_state(materialise(make_model(recipe), weights), optimizing.optimizer, mesh)
    other = batches(recipe.tasks.seed + 1)
    heldout = [put_batch(next(other), mesh) for _ in range(4)]
    loss = jax.jit(lambda weights, batch: sft.make_loss(graph)(weights, batch, batch["mask"].sum())[0])
    curve = []
    for step in sft.train(recipe.sft, optimizing, graph, state, batches(recipe.tasks.seed), mesh, 0):
        if step.number % EVERY == 0 or step.number == steps:
            losses = [float(loss(step.state.weights, batch)) for batch in heldout]
            curve.append((step.number, statistics.mean(losses)))
    print(f"{name} {rate:g} seed {seed}: {curve[-1][1]:.4f}", flush=True)
    return curve


if __name__ == "__main__":
    main()
