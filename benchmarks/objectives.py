"""How many steps does each RL objective need for the same held-out reward?

Starts every objective from one SFT model, with the same tasks, prompts, group size and learning rate, and looks at the
held-out greedy pass@1 every so many steps. The answer is, for each pair of objectives, the step at which the first
reaches what the second ends with. Counts steps, so a busy machine makes no difference.

    python benchmarks/objectives.py [--steps=24] [--seeds=0,1,2] [--names=cispo,dapo,grpo,k2,gspo] [--sft=DIR]
"""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path

import measure

EVERY = 2  # steps between two looks at the held-out reward
# a step's rollouts are worth eight updates: what an objective does with old samples matters then (MiniMax-M1 makes 16)
SETTINGS = ("rl.minibatches=8", "rl.optimizer.learning_rate=2e-4", "rl.optimizer.warmup_steps=8")


def main() -> None:
    """The SFT model if it is not there, then every objective on every seed."""
    parser = measure.parser(__doc__, "objectives")
    parser.add_argument("--steps", type=int, default=24, help="RL steps of a run")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the rollouts")
    parser.add_argument("--names", default="cispo,dapo,grpo,k2,gspo", help="objectives")
    parser.add_argument("--sft", type=Path, default=measure.ROOT / "runs" / "objectives-sft", help="the SFT run")
    parser.add_argument("--override", action="append", default=[], help="key=value of the recipe; may be repeated")
    options = parser.parse_args()
    if not (options.sft / "summary.json").exists():
        command = measure.train_command(options.sft, "stages=('sft',)", *options.override)
        subprocess.run(command, env=measure.environment(), check=True)
    measure.start(2)
    seeds, names = [int(seed) for seed in options.seeds.split(",")], options.names.split(",")
    curves: dict[str, dict[int, list]] = {name: {} for name in names}
    for seed in seeds:
        for name in names:
            curves[name][seed] = run(name, seed, options)
    mean = {
        name: [(found[0][0], statistics.mean(s for _, s in found)) for found in zip(*runs.values(), strict=True)]
        for name, runs in curves.items()
    }
    last = {name: curve[-1][1] for name, curve in mean.items()}
    reached = {
        name: {goal: next((step for step, s in mean[name] if s >= last[goal]), None) for goal in names}
        for name in names
    }
    measure.show(
        f"held-out pass@1 in percent, mean of {len(seeds)} seeds, and steps to what the others end with",
        ("objective", "before", f"after {options.steps}", *(f"to {name}'s" for name in names)),
        [(name, 100 * mean[name][0][1], 100 * last[name], *(reached[name][g] or "-" for g in names)) for name in names],
    )
    measure.write(
        options.output,
        {"overrides": [*SETTINGS, *options.override], "mean": mean, "steps_to": reached, "curves": curves},
    )


def run(name: str, seed: int, options) -> list[tuple[int, float]]:
    """Held-out pass@1 at every so many steps of a run."""
    import jax

    from posttrain_jax.data import tasks
    from posttrain_jax.data.curriculum import Curriculum
    from posttrain_jax.models.decoder import abstract
    from posttrain_jax.parallel.mesh import make_mesh
    from posttrain_jax.stages import rl
    from posttrain_jax.stages.collecting import AtOnce
    from posttrain_jax.stages.critic import split_critic, with_critic
    from posttrain_jax.stages.evaluation import evaluate
    from posttrain_jax.stages.optimizing import make_optimizing
    from posttrain_jax.stages.setup import make_chat, make_engine, make_model
    from posttrain_jax.stages.step import fresh_state
    from posttrain_jax.stages.trained import newest_weights

    given = (f"seed={seed}", f"rl.steps={options.steps}", f"rl.objective.name={name}", *SETTINGS, *options.override)
    recipe = measure.recipe("tiny", *given)
    chat, mesh = make_chat(recipe), make_mesh(devices=jax.local_devices()[:1])
    engine, names = make_engine(recipe, chat), recipe.tasks.names or tasks.TASKS
    graph, shapes = abstract(make_model(recipe), mesh)
    weights = newest_weights(options.sft, shapes).arrays
    settings = recipe.rl
    updates = settings.steps * settings.minibatches
    optimizing = make_optimizing(settings.optimizer, updates, recipe.model, algorithm=recipe.optimizer)
    problems = tasks.heldout(names, recipe.tasks.max_level, recipe.evaluation.problems, recipe.tasks.seed)

    def score(weights):
        policy, _ = split_critic(weights)
        return evaluate(engine, engine.load(policy), chat, problems, system=recipe.tasks.system).overall

    curve = [(0, score(weights))]
    curriculum = Curriculum(names, recipe.tasks.max_level, settings.promote_at, recipe.seed)
    steps = rl.train(
        settings,
        optimizing,
        graph,
        fresh_state(with_critic(weights) if name == "ppo" else weights, optimizing.optimizer, mesh),
        AtOnce(settings, recipe.tasks, engine, chat, curriculum, jax.random.key(seed)),
        curriculum,
        chat,
        rl.Preparation(settings, engine.limits.positions, engine.limits.max_response, mesh),
        None,
        start=0,
        draws=0,
        used=0,
        samples_per_step=0,
    )
    for step in steps:
        if step.number % EVERY == 0 or step.number == options.steps:
            curve.append((step.number, score(step.state.weights)))
    print(f"{name} seed {seed}: " + " ".join(f"{100 * s:.1f}" for _, s in curve), flush=True)
    return curve


if __name__ == "__main__":
    main()
