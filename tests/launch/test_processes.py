"""Several processes are one run: the same numbers, one end, and nobody waits for the dead."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from absl import flags

ROOT = Path(__file__).parents[2]
EXIT_STOPPED, EXIT_PEER_GONE = 75, 76
TIMEOUT = 240
MINUTE = 60
SHORT = (
    *("model.layers=1", "model.hidden=32", "model.heads=2", "model.kv_heads=1", "model.head_dim=16"),
    *("model.rotary_dim=8", "model.experts=2", "model.experts_per_token=1", "model.expert_ffn=16"),
    *("model.max_length=128", "tasks.names=('gcd','spell_backward')", "tasks.max_level=0"),
    *("sft.steps=3", "sft.rows=4", "sft.microbatch_rows=4", "sft.length=128", "rollout.slots=4"),
    *("rollout.max_prompt=96", "rollout.max_response=8", "rollout.decode_chunk=8", "rollout.prefill_batch=2"),
    *("rl.steps=3", "rl.prompts=3", "rl.group_size=4", "rl.minibatches=1", "rl.length=128", "rl.microbatch_rows=4"),
    *("rl.max_rounds=1", "rl.overlong_buffer=8", "rl.overlong_penalty=0.5", "rl.optimizer.warmup_steps=1"),
    *("evaluation.problems=4", "run.checkpoint_every=1", "run.keep=6"),
)


class Together:
    """A run by several processes on this machine, with ``devices`` CPU devices in all."""

    def __init__(self, cache: Path, workdir: Path, count: int, *more: str, devices: int = 2):
        with socket.create_server(("localhost", 0)) as probe:
            port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_NUM_CPU_DEVICES": str(devices // count),
        }
        config = f"--config={ROOT / 'configs' / 'minimax_m2.py'}:tiny"
        command = [sys.executable, str(ROOT / "launch" / "train.py"), config, f"--workdir={workdir}"]
        command += [f"--config.{setting}" for setting in (*SHORT, *more)]
        self.workdir, self.children = workdir, []
        for process in range(count):
            here = [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={process}"]
            with open(workdir.with_name(f"{workdir.name}-{process}.log"), "w") as log:
                where = {"stdout": log, "stderr": subprocess.STDOUT, "env": environment}
                self.children.append(subprocess.Popen([*command, *(here if count > 1 else [])], **where))

    def said(self, process: int) -> str:
        return self.workdir.with_name(f"{self.workdir.name}-{process}.log").read_text()

    def wait(self, seconds: float = TIMEOUT) -> list[int]:
        try:
            return [child.wait(seconds) for child in self.children]
        finally:
            for child in self.children:
                child.kill()

    def signal(self, process: int, number: int, lines: int) -> None:
        """Sends a signal once the run has written some lines of metrics more than there are."""
        wanted = lines + self._lines()
        deadline = time.monotonic() + TIMEOUT
        while self._lines() < wanted:
            assert all(child.poll() is None for child in self.children), self.said(0)
            assert time.monotonic() < deadline, self.said(0)
            time.sleep(0.01)
        self.children[process].send_signal(number)

    def _lines(self) -> int:
        path = self.workdir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    cache = tmp_path_factory.mktemp("xla")
    return lambda *args, **options: Together(cache, *args, **options)


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory) -> Path:
    """The workdir of one process with two devices. Not to be changed."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    run = start(workdir, 1)
    assert run.wait() == [0], run.said(0)
    return workdir


def same(workdir: Path, reference: Path) -> bool:
    return all((workdir / f).read_bytes() == (reference / f).read_bytes() for f in ("metrics.jsonl", "samples.jsonl"))


def killed(run: Together, victim: int) -> None:
    """Kills one process in the middle of the run: the other ends within a minute, and says why in its last line."""
    run.signal(victim, signal.SIGKILL, lines=2)
    before = time.monotonic()
    codes = run.wait(MINUTE)
    assert time.monotonic() - before < MINUTE
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == EXIT_PEER_GONE, run.said(1 - victim)
    line = run.said(1 - victim).splitlines()[-1]
    assert line.startswith(f"error: process {victim} of 2 is gone (") and "start all 2 again" in line


@pytest.mark.slow
def test_two_are_as_one_though_the_coordinator_was_killed(start, alone, tmp_path):
    lines = (alone / "metrics.jsonl").read_text().splitlines()
    assert any('"rl"' in line and '"grad_norm"' in line for line in lines), "too little was learned to compare"
    killed(start(tmp_path / "run", 2), 0)
    run = start(tmp_path / "run", 2)
    assert run.wait() == [0, 0], run.said(0)
    assert same(tmp_path / "run", alone)


@pytest.mark.slow
def test_two_are_as_one_when_killed_stopped_and_ended_by_one(start, alone, tmp_path):
    killed(start(tmp_path / "run", 2), 1)
    run = start(tmp_path / "run", 2)
    run.signal(1, signal.SIGTERM, lines=1)
    assert run.wait() == [EXIT_STOPPED] * 2, run.said(0)
    run = start(tmp_path / "run", 1)
    assert run.wait() == [0] and "resumed at" in run.said(0), run.said(0)
    assert same(tmp_path / "run", alone)


@pytest.mark.slow
def test_two_split_over_experts_and_go_on_over_another_mesh(start, alone, tmp_path):
    """Sharded, all decode together; the numbers go on where they were, but for rounding."""
    split = ("mesh.expert=2", "rollout.sharded=true")
    for count in (2, 1):
        run = start(tmp_path / f"by{count}", count, *split)
        assert run.wait() == [0] * count, run.said(0)
    assert same(tmp_path / "by2", tmp_path / "by1")
    checkpoints = tmp_path / "by2" / "checkpoints"
    for step in (3, 4, 5, 6):
        (checkpoints / str(step)).rename(tmp_path / f"later{step}")
    run = start(tmp_path / "by2", 2, "mesh.fsdp=2")
    assert run.wait() == [0, 0] and "resumed at sft step 2" in run.said(0), run.said(0)
    losses = [
        [
            float(line.split(b'"loss": ')[1].split(b",")[0])
            for line in (folder / "metrics.jsonl").read_bytes().split(b"\n")[1:4]
        ]
        for folder in (tmp_path / "by1", tmp_path / "by2")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_four_are_as_two_and_a_frozen_one_is_told(start, tmp_path):
    for count in (2, 4):
        run = start(tmp_path / f"by{count}", count, devices=4)
        assert run.wait() == [0] * count, run.said(0)
    assert same(tmp_path / "by4", tmp_path / "by2")
    run = start(tmp_path / "frozen", 4, devices=4)
    run.signal(2, signal.SIGSTOP, lines=2)
    try:
        codes = [run.children[i].wait(MINUTE) for i in (0, 1, 3)]
    finally:
        run.children[2].kill()
    assert codes == [EXIT_PEER_GONE] * 3
    assert all("process 2 of 4 is gone (no sign of life for" in run.said(i) for i in (0, 1, 3))


def read(*arguments):
    values = flags.FlagValues()
    processes.define(values)
    values(["", *arguments])
    return values


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--processes=2"], ["--coordinator is missing", "--process is missing"]),
        (
            ["--coordinator=a:1", "--processes=0", "--process=0"],
            ["--processes=0: must be at least 1; the nearest is 1"],
        ),
        (["--coordinator=a:1", "--processes=4", "--process=4"], ["must be 0 to 3, one for each; the nearest is 3"]),
        (["--coordinator=a", "--processes=2", "--process=1"], ["expected HOST:PORT; the nearest is a:8476"]),
        (["--coordinator=a:99999", "--processes=2", "--process=1"], ["the nearest is a:65535"]),
        (["--distributed", "--processes=2"], ["leave one of the two out"]),
        (["--distributed"], ["no SLURM step"]),
        (["--coordinator=a:1", "--processes=4", "--process=3"], []),
        ([], []),
    ],
)
def test_bad_combinations_are_told(arguments, said):
    found = processes.problems(read(*arguments), {})
    assert len(found) == len(said) and all(words in line for words, line in zip(said, found, strict=True)), found


def test_slurm_is_seen():
    environment = {f"SLURM_{name}": "1" for name in ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")}
    assert processes.problems(read("--distributed"), environment) == []
