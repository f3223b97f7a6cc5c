"""How much sooner is a reward reached where steps do not wait for their last response?

One SFT run of the tiny recipe is the base of all. From its weights RL runs once for each seed and each way of sampling:
waiting for every response, carrying unfinished ones over, and on a device beside the trainer's (two virtual devices on
the same cores). Responses are drawn at a temperature that makes their lengths long-tailed, and all of a step's have a
slot. The reward is smoothed over five steps; the goal is what the worst run of a seed ends with, less two points.

    python benchmarks/asynchronous.py [--seeds=0,1,2] [--steps=40] [--workdir=runs/asynchronous]
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
from pathlib import Path

import measure

WAYS = {
    "waiting": (1, ()),
    "carrying over": (1, ("rl.carry_over=1",)),
    "beside": (2, ("rl.carry_over=1", "rollout.beside=True", "rollout.banks=1")),
}
WINDOW, SHORT_OF = 5, 0.02


def main() -> None:
    """The base, every run, and when each reached its goal."""
    parser = measure.parser(__doc__, "asynchronous")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the RL runs")
    parser.add_argument("--steps", type=int, default=40, help="RL steps of a run")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling")
    parser.add_argument("--workdir", type=Path, default=measure.ROOT / "runs" / "asynchronous", help="where runs go")
    options = parser.parse_args()
    base = options.workdir / "base"
    train(base, 1, "stages=sft")
    rows = []
    for seed in map(int, options.seeds.split(",")):
        found = {}
        for way, (devices, overrides) in WAYS.items():
            workdir = options.workdir / f"{way.replace(' ', '_')}{seed}"
            shape = f"rl.steps={options.steps}", "rollout.slots=256", f"rl.sampling.temperature={options.temperature}"
            train(workdir, devices, f"weights={base}", "stages=rl", f"seed={seed}", *shape, *overrides)
            found[way] = read(workdir)
        goal = min(one["smoothed"][-1] for one in found.values()) - SHORT_OF
        for way, one in found.items():
            reached = next(i for i, reward in enumerate(one["smoothed"]) if reward >= goal)
            rows.append({"seed": seed, "way": way, "goal": goal, "seconds_to_goal": one["clock"][reached], **one})
    table, ratios = [], {}
    for way in WAYS:
        mine = [row for row in rows if row["way"] == way]
        waiting = [row for row in rows if row["way"] == "waiting"]
        ratios[way] = [b["seconds_to_goal"] / a["seconds_to_goal"] for a, b in zip(mine, waiting, strict=True)]
        middle = {
            name: statistics.mean(row[name] for row in mine)
            for name in ("seconds_to_goal", "step_seconds", "end_reward", "heldout", "fresh", "longest_over_mean")
        }
        table.append((way, statistics.median(ratios[way]), *middle.values()))
    measure.show(
        "RL until one reward: times faster than waiting, and means over the seeds",
        ("sampling", "times", "seconds", "step s", "end reward", "held-out", "fresh", "longest/mean"),
        table,
    )
    measure.write(options.output, {"steps": options.steps, "times_faster": ratios, "runs": rows})


def train(workdir: Path, devices: int, *overrides: str) -> None:
    """A run as a person starts it, if it is not there already."""
    environment = measure.environment() | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    subprocess.run(measure.train_command(workdir, *overrides), env=environment, check=True)


def read(workdir: Path) -> dict:
    """A run's rewards and the seconds at which it had them; the first step, which compiles, counts like the second."""
    rewards, fresh = zip(
        *((line["reward"], line.get("fresh", 1.0)) for line in lines(workdir / "metrics.jsonl")), strict=True
    )
    seconds = [line["seconds"] for line in lines(workdir / "timing.jsonl")]
    seconds[0] = seconds[1]
    summary = json.loads((workdir / "summary.json").read_text())
    lengths = [json.loads(line)["tokens"] for line in (workdir / "samples.jsonl").read_text().splitlines()]
    smoothed = [statistics.mean(rewards[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(rewards))]
    return {
        "clock": list(itertools.accumulate(seconds)),
        "smoothed": smoothed,
        "step_seconds": statistics.median(seconds),
        "end_reward": smoothed[-1],
        "heldout": summary["heldout"]["rl"],
        "fresh": statistics.mean(fresh),
        "longest_over_mean": max(lengths) / statistics.mean(lengths),
    }


def lines(path: Path) -> list[dict]:
    """The lines of RL."""
    return [line for line in measure.lines(path) if line["stage"] == "rl"]


if __name__ == "__main__":
    main()
