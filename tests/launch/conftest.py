"""A job small enough to be run, killed and run again: the real entry points, in processes of their own."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = """
    model.layers=2 model.hidden=32 model.heads=2 model.kv_heads=1 model.head_dim=16 model.rotary_dim=8
    model.experts=4 model.experts_per_token=2 model.expert_ffn=32 model.max_length=128
    tasks.names=gcd tasks.names=spell_backward tasks.max_level=1
    sft.steps=24 sft.rows=8 sft.microbatch_rows=4 sft.length=128 sft.careful_share=1.0
    sft.optimizer.learning_rate=2e-2 sft.optimizer.warmup_steps=1
    rollout.slots=8 rollout.max_prompt=96 rollout.max_response=16 rollout.decode_chunk=8 rollout.prefill_batch=2
    rl.steps=8 rl.prompts=3 rl.group_size=4 rl.minibatches=2 rl.length=128 rl.microbatch_rows=2
    tasks.weights=spell_backward=1 tasks.schedule=gcd=1:0.5 rl.effort=failure rl.retire_at=0.95
    rl.max_rounds=3 rl.overlong_buffer=16 rl.overlong_penalty=0.5 rl.promote_at=0.5
    rl.optimizer.learning_rate=1e-3 rl.optimizer.warmup_steps=1
    evaluation.problems=8 run.checkpoint_every=4 run.keep=2
""".split()
LAST = 32  # steps of both stages together
TIMEOUT = 400  # seconds; a process that takes longer hangs


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Starts entry points with one compilation cache, so that only the first of them compiles."""

    cache: Path

    def start(self, script: str, *arguments: str, **options) -> subprocess.Popen:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "COLUMNS": "120",
        }
        command = [sys.executable, str(ROOT / "launch" / script), *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, text=True, **{**pipes, **options})

    def run(self, script: str, *arguments: str, typed: str = "", **options) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **options)
        try:
            out, err = process.communicate(typed, timeout=TIMEOUT)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def train(self, workdir: Path, *more: str, **options) -> subprocess.CompletedProcess:
        return self.run("train.py", *train_arguments(workdir), *more, **options)

    def interrupt(self, workdir: Path, signal: int, moment, *more: str) -> subprocess.CompletedProcess:
        """Starts training, sends ``signal`` as soon as ``moment()`` holds, and returns what came of it."""
        process = self.start("train.py", *train_arguments(workdir), *more)
        try:
            deadline = time.monotonic() + TIMEOUT
            while not moment():
                assert process.poll() is None, f"ended before the moment came:\n{process.communicate()}"
                assert time.monotonic() < deadline, "the moment never came"
                time.sleep(0.002)
            process.send_signal(signal)
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def train_arguments(workdir: Path) -> list[str]:
    config = f"--config={ROOT / 'configs' / 'minimax_m2.py'}:tiny"
    return [config, f"--workdir={workdir}", *(f"--config.{setting}" for setting in SETTINGS)]


def arrays(workdir: Path, step: int = LAST) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, read by Orbax alone."""
    folder = workdir / "checkpoints" / str(step) / "arrays"
    reader = ocp.PyTreeCheckpointer()
    names = reader.metadata(folder).item_metadata.tree
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
    return reader.restore(folder, restore_args=how)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory) -> Launcher:
    return Launcher(tmp_path_factory.mktemp("xla"))


@pytest.fixture(scope="session")
def small() -> list[str]:
    """KEY=VALUE of the small job."""
    return SETTINGS


@pytest.fixture(scope="session")
def finished(launcher, tmp_path_factory) -> Path:
    """The workdir of a run that nothing interrupted. Not to be changed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    ended = launcher.train(workdir)
    assert ended.returncode == 0, ended.stderr
    return workdir


@pytest.fixture(scope="session")
def same_end():
    """Asserts that a run ended as another did, to the bit."""

    def check(workdir: Path, reference: Path) -> None:
        assert (workdir / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
        assert (workdir / "samples.jsonl").read_bytes() == (reference / "samples.jsonl").read_bytes()
        found, expected = arrays(workdir), arrays(reference)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes(), name

    return check
