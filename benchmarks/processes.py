"""Do several processes write what one writes, and what does the death of one cost?

One short job, SFT then RL, on a mesh of four CPU devices: by one process with four of them, by two with two each, and
by four with one each. ``metrics.jsonl``, ``samples.jsonl`` and every array of the last checkpoint must be the same
bits. Then two processes with two devices each, one of which, chosen by chance, is killed with SIGKILL at a random
instant of the undisturbed run's wall time; the other must end by itself with its one line and exit code. All are
started again, and so on until the run is done, and all of that again until there were enough kills. Each run must end
in the same bits.

All sums over devices go through gloo, also those of the one process (``--processes=1``): alone in a process, XLA adds
four devices' numbers in another order, which changes last bits.

    python benchmarks/processes.py [--kills=5] [--seed=0]
"""

from __future__ import annotations

import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import measure
import resume

DEVICES = 4
SHORT = (
    *("model.layers=2", "model.hidden=32", "model.heads=2", "model.kv_heads=1", "model.head_dim=16"),
    *("model.rotary_dim=8", "model.experts=4", "model.experts_per_token=2", "model.expert_ffn=32"),
    *("model.max_length=128", "tasks.names=('gcd','spell_backward')", "tasks.max_level=1"),
    *("sft.steps=8", "sft.rows=8", "sft.microbatch_rows=4", "sft.length=128", "sft.careful_share=1.0"),
    *("sft.optimizer.learning_rate=2e-2", "sft.optimizer.warmup_steps=1"),
    *("rollout.slots=8", "rollout.max_prompt=96", "rollout.max_response=16", "rollout.decode_chunk=8"),
    *("rollout.prefill_batch=2", "rl.steps=6", "rl.prompts=4", "rl.group_size=4", "rl.minibatches=2"),
    *("rl.length=128", "rl.microbatch_rows=4", "rl.max_rounds=3", "rl.overlong_buffer=16"),
    *("rl.overlong_penalty=0.5", "rl.optimizer.warmup_steps=1", "evaluation.problems=8", "run.checkpoint_every=2"),
)
LIMIT = 600  # seconds for a run
GONE = re.compile(r"^error: process \d of \d is gone \(.*\); .*: start all \d again$", re.MULTILINE)


def main() -> None:
    """The same run by one, two and four processes, then by two of which one is killed."""
    parser = measure.parser(__doc__, "processes")
    parser.add_argument("--kills", type=int, default=5, help="kills, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and of who is killed")
    parser.add_argument("--cache", type=Path, help="where compiled programs are kept, also for the next time")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sharding info not provided")
    dice, kills, same, walls = random.Random(options.seed), [], {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = options.cache or folder / "cache"
        for run, count in (("by1", 1), ("by4", 4), ("by2", 2), ("again", 2)):  # the last finds its programs compiled
            began = time.perf_counter()
            codes, _ = attempt(folder / run, cache, count)
            walls[count] = time.perf_counter() - began
            assert codes == [0] * count, (folder / f"{run}-0.log").read_text()[-3000:]
            same[count] = resume.differences(folder / run, folder / "by1")
            print(f"{count} processes: {walls[count]:.1f} s, {same[count]}", flush=True)
        runs = []
        while len(kills) < options.kills:
            workdir = folder / f"killed{len(runs)}"
            while True:
                kill = dice.uniform(0, walls[2]), dice.randrange(2)
                codes, found = attempt(workdir, cache, 2, kill)
                if found is None:
                    assert codes == [0, 0], codes
                    break
                kills.append({"after": kill[0], "process": kill[1], **found})
                print(f"kill {len(kills)}: {kills[-1]}", flush=True)
            runs.append(resume.differences(workdir, folder / "by1"))
            print(f"run {len(runs)}: {runs[-1]}", flush=True)
    numbers = {
        "differing_bits": {f"{count} processes": found["differing_bits"] for count, found in same.items()},
        "kills": len(kills),
        "differing_bits_after_kills": sum(run["differing_bits"] for run in runs),
        "slowest_end_seconds": max(kill["end_seconds"] for kill in kills),
        "ended_with_the_line": sum(kill["line"] for kill in kills),
    }
    measure.show("processes", ("measure", "value"), list(numbers.items()))
    detail = {"same": same, "runs": runs, "instants": kills, "seconds": walls, "overrides": SHORT}
    measure.write(options.output, {**numbers, **detail})
    wrong = any(found["differing_bits"] or found["differing_files"] for found in [*same.values(), *runs])
    sys.exit(1 if wrong or numbers["slowest_end_seconds"] > 60 else 0)


def attempt(
    workdir: Path, cache: Path, count: int, kill: tuple[float, int] | None = None
) -> tuple[list[int], dict | None]:
    """Runs the job to its end, or kills one process after some seconds: exit codes, and how the others ended."""
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    environment = measure.environment(cache) | {"JAX_NUM_CPU_DEVICES": str(DEVICES // count)}
    logs = [workdir.with_name(f"{workdir.name}-{process}.log") for process in range(count)]
    children = []
    for process, log in enumerate(logs):
        where = (f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={process}")
        with open(log, "w") as out:
            command = [*measure.train_command(workdir, *SHORT), *where]
            children.append(subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT))
    try:
        if kill is None or (victim := _wait(children, kill)) is None:
            return [child.wait(LIMIT) for child in children], None
        began = time.perf_counter()
        together = (workdir / "config.json").exists() and "devices" in logs[0].read_text()
        children[victim].kill()
        codes = [child.wait(LIMIT) for child in children]
        seconds = time.perf_counter() - began
        line = all(GONE.search(log.read_text()) for log in logs if log != logs[victim])
        steps = measure.lines(workdir / "timing.jsonl")[-1:]
        last = f"{steps[0]['stage']} {steps[0]['step']}" if steps else "none"
        return codes, {"codes": codes, "end_seconds": seconds, "line": line, "training": together, "last_step": last}
    finally:
        for child in children:
            child.kill()
            child.wait()


def _wait(children: list[subprocess.Popen], kill: tuple[float, int]) -> int | None:
    """Who is to be killed now; None where the run ended before."""
    after, victim = kill
    try:
        children[victim].wait(after)
    except subprocess.TimeoutExpired:
        return victim
    return None


if __name__ == "__main__":
    main()
