"""Does a run that is killed at random instants end bit for bit as one that is left alone?

Makes one short run of the main job undisturbed: a few SFT steps, a few RL steps, a checkpoint every second one. Then
makes the same run again in another directory, kills it with SIGKILL at a random instant, types the same command again,
and so on until it is done; and all of that again until there were enough kills. Each time the bytes of metrics.jsonl
and samples.jsonl and every array of the last checkpoint must be those of the undisturbed run. Instants are uniform over
the undisturbed run's wall time. Just before a kill a signal makes the process write down where each thread is
(``faulthandler``), which tells the phase that the kill hit; "saving" counts the kills while a checkpoint was half
written.

    python benchmarks/resume.py [--kills=20] [--seed=0]
"""

from __future__ import annotations

import collections
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import measure

# Short, yet with updates in RL: an untrained model's answers are all wrong, so the length penalty makes the rewards.
SHORT = (
    "sft.steps=10",
    "sft.rows=8",
    "sft.microbatch_rows=8",
    "rl.steps=6",
    "rl.prompts=8",
    "rl.group_size=8",
    "rl.max_rounds=2",
    "run.checkpoint_every=2",
    "evaluation.problems=32",
)
CHILD = (
    "import faulthandler, runpy, signal, sys\n"
    "faulthandler.register(signal.SIGUSR1, open(sys.argv.pop(1), 'w'), all_threads=True)\n"
    "sys.argv.pop(0)\n"
    "sys.path[0] = sys.argv[0].rpartition('/')[0]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)
# the first phase whose function is on the main thread's stack, outermost work first
PHASES = (
    ("_evaluate", "held-out evaluation"),
    ("_summarise", "summary"),
    ("collect", "RL rollout"),
    ("_save", "save"),
)


def main() -> None:
    """The undisturbed run, then killed ones until there were enough kills."""
    parser = measure.parser(__doc__, "resume")
    parser.add_argument("--kills", type=int, default=20, help="kills, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--override", action="append", default=[], help="key=value of the recipe; may be repeated")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sharding info not provided")
    dice, kills, runs = random.Random(options.seed), [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = (*SHORT, f"rl.overlong_buffer={measure.recipe().rollout.max_response}", *options.override)
        for run in ("first", "whole"):  # the first fills the directory of compiled programs
            began = time.perf_counter()
            attempt(folder / run, folder / "cache", overrides, None)
            wall = time.perf_counter() - began
        updates = [line for line in measure.lines(folder / "whole" / "metrics.jsonl") if line["stage"] == "rl"]
        learned = sum("grad_norm" in line for line in updates)
        print(f"undisturbed: {wall:.1f} s, {len(updates)} RL steps, {learned} of them with updates", flush=True)
        while len(kills) < options.kills:
            workdir = folder / f"killed{len(runs)}"
            before = len(kills)
            while (phase := attempt(workdir, folder / "cache", overrides, dice.uniform(0, wall))) is not None:
                kills.append(phase)
                print(f"kill {len(kills)}: {phase}", flush=True)
            runs.append({"kills": len(kills) - before, **differences(workdir, folder / "whole")})
            print(f"run {len(runs)}: {runs[-1]}", flush=True)
    phases = collections.Counter(kill["phase"] for kill in kills)
    bits = sum(run["differing_bits"] for run in runs)
    numbers = {"kills": len(kills), "while_saving": sum(kill["saving"] for kill in kills), "differing_bits": bits}
    measure.show("where the kills hit", ("phase", "kills"), sorted(phases.items()))
    measure.show("all runs together", ("measure", "value"), list(numbers.items()) + [("runs", len(runs))])
    detail = {
        "phases": dict(phases),
        "runs": runs,
        "instants": kills,
        "undisturbed_seconds": wall,
        "rl_updates": learned,
    }
    measure.write(options.output, {**numbers, **detail, "overrides": overrides})
    sys.exit(1 if bits or any(run["differing_files"] for run in runs) else 0)


def attempt(workdir: Path, cache: Path, overrides: tuple[str, ...], after: float | None) -> dict | None:
    """Runs the main job for ``after`` seconds, or to its end; what the kill hit, None where it ended by itself."""
    workdir.mkdir(exist_ok=True)
    stacks = workdir.with_suffix(".stacks")
    command = measure.train_command(workdir, *overrides)
    command = [command[0], "-c", CHILD, str(stacks), *command[1:]]
    with open(workdir.with_suffix(".log"), "w+") as log:
        child = subprocess.Popen(command, env=measure.environment(cache), stdout=log, stderr=subprocess.STDOUT)
        try:
            code = child.wait(after)
        except subprocess.TimeoutExpired:
            return kill(child, workdir, stacks, after)
        finally:
            child.kill()
            child.wait()
        if code:
            log.seek(0)
            raise SystemExit(f"the run ended with {code}:\n{log.read()[-3000:]}")
    return None


def kill(child: subprocess.Popen, workdir: Path, stacks: Path, after: float) -> dict:
    """Kills the run; the instant in seconds, the phase, the last step logged, and whether a save was under way."""
    if stacks.exists():  # before that there is no handler, and the signal would be the end
        child.send_signal(signal.SIGUSR1)
        time.sleep(0.02)
    child.kill()
    child.wait()
    logged = measure.lines(workdir / "timing.jsonl")[-1:]
    return {
        "after": after,
        "phase": phase_of(stacks.read_text() if stacks.exists() else ""),
        "last_step": f"{logged[0]['stage']} {logged[0]['step']}" if logged else "none",
        "saving": any((workdir / "checkpoints").glob("*.unfinished")),
    }


def phase_of(dump: str) -> str:
    """The phase that a dump of all threads' stacks shows; the main thread comes last."""
    main_thread = dump.rpartition("hread 0x")[2]
    for function, phase in PHASES:
        if f" in {function}\n" in main_thread:
            return phase
    if " in _follow\n" not in main_thread:
        return "start"
    steps = [stage for stage in ("rl", "sft") if f"/stages/{stage}.py" in main_thread]
    return {"rl": "RL update", "sft": "SFT step"}.get(steps[0], "") if steps else "between steps"


def differences(ours: Path, expected: Path) -> dict:
    """Differing bits of the arrays of the last checkpoint, and the names of differing files."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    last = max(int(path.name) for path in (expected / "checkpoints").iterdir() if path.name.isdecimal())
    reader, trees = ocp.PyTreeCheckpointer(), []
    for run in (ours, expected):
        arrays = run / "checkpoints" / str(last) / "arrays"
        how = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(arrays).item_metadata.tree
        )
        trees.append(reader.restore(arrays, restore_args=how))
    mine, theirs = ([np.frombuffer(np.asarray(x).tobytes(), np.uint8) for x in jax.tree.leaves(t)] for t in trees)
    bits = sum(int(np.bitwise_count(a ^ b).sum()) for a, b in zip(mine, theirs, strict=True))
    files = [
        name
        for name in ("metrics.jsonl", "samples.jsonl")
        if (ours / name).read_bytes() != (expected / name).read_bytes()
    ]
    return {"arrays": len(mine), "bits": 8 * sum(map(len, mine)), "differing_bits": bits, "differing_files": files}


if __name__ == "__main__":
    main()
