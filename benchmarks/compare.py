"""What does each maker's reinforcement learning gain on the same base, tasks and tokens?

Runs `launch/compare.py` at the tiny scale, exactly as a person starts it. Runs that are there already are not repeated:
the same command goes on with them.

    python benchmarks/compare.py [--configs=minimax_m2,kimi_k2] [--tokens=200000] [--seeds=0,1] [--workdir=runs/compare]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure

RECIPES = ("minimax_m2", "kimi_k2", "glm_4_6", "minimax_m1", "hybrid")
CURVES = ("heldout", "response_length")  # of those that compare.json holds


def main() -> None:
    """One comparison, then the table."""
    parser = measure.parser(__doc__, "compare")
    parser.add_argument(
        "--configs", default=",".join(RECIPES), help="names in configs/; the first one's SFT is the base"
    )
    parser.add_argument("--tokens", type=int, default=200_000, help="of a run, sampled and trained on")
    parser.add_argument("--every", type=int, default=5, help="steps between measures of what is held out")
    parser.add_argument("--seeds", default="0", help="seeds of the runs")
    parser.add_argument("--workdir", type=Path, default=measure.ROOT / "runs" / "compare", help="where the runs go")
    options = parser.parse_args()
    budget = [f"--tokens={options.tokens}", f"--every={options.every}", f"--seeds={options.seeds}"]
    found = compare(options.configs.split(","), options.workdir, *budget)
    measure.show(
        f"{options.tokens:,} tokens on one base: held-out greedy pass@1 in percent, tokens to the weakest run's end",
        ("recipe", "held out", "k tokens", "length", "entropy", "steps", "minutes"),
        [
            (
                name,
                *(scale * recipe["mean"][key]["mean"] for key, scale in (("heldout", 100), ("tokens_to_common", 1e-3))),
                *(recipe["mean"][key]["mean"] for key in ("response_length", "entropy", "steps")),
                sum(recipe["seconds"]) / 60,
            )
            for name, recipe in found["recipes"].items()
        ],
    )
    measure.write(options.output, found)


def compare(configs: list[str], workdir: Path, *flags: str) -> dict[str, Any]:
    """The comparison, its progress shown; of each recipe its numbers, two curves, and the seconds of its own runs."""
    script = [sys.executable, str(measure.ROOT / "launch" / "compare.py"), "--scale=tiny", "--json"]
    files = ",".join(str(measure.ROOT / "configs" / f"{name}.py") for name in configs)
    command = [*script, f"--configs={files}", f"--workdir={workdir}", *flags]
    ended = subprocess.run(command, env=measure.environment(), check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(ended.stdout)
    for name, recipe in found["recipes"].items():
        recipe["curves"] = {key: recipe["curves"][key] for key in CURVES}
        own = [workdir / f"{name}-seed{seed}" / "summary.json" for seed in found["seeds"]]
        recipe["seconds"] = [json.loads(path.read_text())["seconds"]["total"] for path in own if path.exists()]
    return found


if __name__ == "__main__":
    main()
