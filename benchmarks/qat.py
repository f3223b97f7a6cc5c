"""What do experts in INT4 cost a trained model, with and without training for them?

The tiny recipe twice for each seed, with weights in bfloat16 and float32 copies of them in the optimiser: once as it
is, once with `precision.qat="int4"` and INT4 rollouts. The held-out greedy pass@1 of each is then taken on more
problems than the recipe's own: the plain run as it is, the plain run with its experts quantised after the fact, the QAT
run in INT4. The QAT run is also written as a released INT4 checkpoint and read back: what that model samples must be
the QAT run's own, token for token.

A run that is there already is not repeated: the same command goes on with it.

    python benchmarks/qat.py [--seeds=0,1,2] [--problems=1024] [--workdir=runs/qat] [--override=rl.steps=40 ...]
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import measure

SHARED = ("precision.params=bfloat16", "optimizer.master_weights=True")
WAYS = {"bf16": (), "qat": ("precision.qat=int4", "rollout.int4=True")}


def main() -> None:
    """Both runs of every seed, then what each answers."""
    parser = measure.parser(__doc__, "qat")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the runs")
    parser.add_argument("--problems", type=int, default=1024, help="held-out problems of each answer")
    parser.add_argument("--workdir", type=Path, default=measure.ROOT / "runs" / "qat", help="where the runs go")
    parser.add_argument("--override", action="append", default=[], help="key=value of the recipe; may be repeated")
    options = parser.parse_args()
    rows = []
    for seed in map(int, options.seeds.split(",")):
        folders = {way: options.workdir / f"{way}{seed}" for way in WAYS}
        for way, overrides in WAYS.items():
            command = measure.train_command(folders[way], f"seed={seed}", *SHARED, *overrides, *options.override)
            subprocess.run(command, env=measure.environment(), check=True)
        rows.append({"seed": seed} | answers(folders, options.problems))
    names = "bf16", "bf16, quantised after", "qat in int4"
    measure.show(
        f"held-out greedy pass@1 in percent, {options.problems} problems",
        ("seed", *names, "read back from a release"),
        [(r["seed"], *(100 * r[name] for name in names), f"{r['same']} of {options.problems} the same") for r in rows],
    )
    means = {name: statistics.mean(r[name] for r in rows) for name in names}
    measure.write(
        options.output, {"problems": options.problems, "mean": means, "overrides": options.override, "runs": rows}
    )


def answers(folders: dict[str, Path], problems: int) -> dict:
    """The three rates of a seed, and how many answers a release read back gives the same."""
    measure.start(2)
    import run_directory

    released, back = folders["qat"].with_name("released"), folders["qat"].with_name("back")
    for folder in (released, back):
        shutil.rmtree(folder, ignore_errors=True)
    convert = [sys.executable, str(measure.ROOT / "launch" / "convert.py")]
    ways = (
        (f"--from={folders['qat']}", f"--to_hf={released}", "--form=int4"),
        (f"--from_hf={released}", f"--to={back}", "--dtype=float32"),
    )
    for way in ways:
        subprocess.run([*convert, *way], env=measure.environment(), check=True)
    plain, trained = run_directory.read(folders["bf16"]), run_directory.read(folders["qat"])
    quantised = dataclasses.replace(plain, rollout=dataclasses.replace(plain.rollout, int4=True))
    rate, _ = heldout(plain, folders["bf16"], problems)
    after, _ = heldout(quantised, folders["bf16"], problems)
    qat, said = heldout(trained, folders["qat"], problems)
    exact = dataclasses.replace(plain, precision=dataclasses.replace(plain.precision, params="float32"))
    again, repeated = heldout(exact, back, problems)
    same = sum(a == b for a, b in zip(said, repeated, strict=True))
    return {"bf16": rate, "bf16, quantised after": after, "qat in int4": qat, "read back": again, "same": same}


def heldout(recipe, folder: Path, problems: int) -> tuple[float, list[tuple[int, ...]]]:
    """The newest weights' pass@1, and the tokens of every answer."""
    from posttrain_jax.data import tasks
    from posttrain_jax.stages import evaluation, trained

    model = trained.load(recipe, folder)
    asked = tasks.heldout(recipe.tasks.names or tasks.TASKS, recipe.tasks.max_level, problems, recipe.tasks.seed)
    score = evaluation.evaluate(model.engine, model.weights, model.chat, asked, system=recipe.tasks.system)
    return score.overall, [tuple(one.completion.tokens.tolist()) for one in score.trajectories]


if __name__ == "__main__":
    main()
