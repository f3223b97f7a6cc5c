"""launch/tpu_vm.py, gke.py and slurm.py against a cloud that takes only documented flags and runs what it is sent."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cluster
import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = (
    *("sudo", "mountpoint"),
    "gcloud",
    "xpk",
    "kubectl",
    "sbatch",
    "srun",
    "scontrol",
    "squeue",
    "scancel",
    "uv",
    "pip",
    "python",
    "python3",
)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers are Linux machines")

HARD = ["--config=configs/minimax_m2.py:full", "--workdir=/mnt/it's here", '--config.x=a "b"  $HOME `c` ; \\ *']
ON = ["--name=m2", "--zone=us-east5-a"]
NEW = [*ON, "--type=v5p-16", "--spot", "--poll=0"]


class Cloud:
    def __init__(self, here: Path):
        self.here = here
        (here / "bin").mkdir()
        for program in PROGRAMS:
            path = here / "bin" / program
            fake = shlex.join([sys.executable, "-S", str(Path(__file__).with_name("fake_cloud.py")), program])
            path.write_text(f'#!/bin/sh\nexec {fake} "$@"\n')
            path.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{here / 'bin'}:/usr/bin:/bin",
            "FAKE_CLOUD": str(here),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(here),
        }

    def set(self, *, states=(("ACTIVE",),), codes=(0,)):
        (self.here / "states.json").write_text(json.dumps(states))
        (self.here / "codes.json").write_text(json.dumps(codes))

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "launch" / script), *arguments]
        return subprocess.run(command, env=self.environment, cwd=self.here, capture_output=True, text=True, timeout=60)

    def calls(self) -> list[list[str]]:
        return self._lines("calls.jsonl")

    def verbs(self) -> list[str]:
        return [call[4] for call in self.calls()]

    def trained(self) -> list[dict]:
        return self._lines("trained.jsonl")

    def until(self, moment):
        deadline = time.monotonic() + 30
        while not moment():
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.02)

    def _lines(self, name: str) -> list:
        path = self.here / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    made = Cloud(tmp_path)
    made.set()
    return made


def ok(ended: subprocess.CompletedProcess) -> str:
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def error(ended: subprocess.CompletedProcess) -> str:
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stdout + ended.stderr
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_step_by_step_on_two_slices(cloud):
    cloud.set(states=[["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]], codes=["hang"])
    ok(cloud.run("tpu_vm.py", "create", *NEW, "--slices=2"))
    assert cloud.calls()[0][5:] == ["m2", "--node-count=2", "--node-prefix=m2", "--accelerator-type=v5p-16",
                                    "--runtime-version=v2-alpha-tpuv5", "--spot", "--zone=us-east5-a"]  # fmt: skip
    waited = ok(cloud.run("tpu_vm.py", "wait", *ON, "--poll=0"))
    assert waited.splitlines() == ["m2: WAITING_FOR_RESOURCES", "m2: PROVISIONING"]
    for _ in range(2):  # what is mounted stays mounted
        ok(cloud.run("tpu_vm.py", "install", *ON, "--nfs=10.0.0.2:/my runs"))
    asked = [json.loads(line) for line in (cloud.here / "sudo.jsonl").read_text().splitlines()]
    assert [words for words in asked if words[0] == "mount"] == [
        ["mount", "-t", "nfs", "10.0.0.2:/my runs", "/mnt/runs"]
    ]
    assert (cloud.here / "worker-1-1/posttrain_jax/launch/train.py").exists()
    assert ok(cloud.run("tpu_vm.py", "status", *ON)).count("posttrain_jax: absent") == 4

    ok(cloud.run("tpu_vm.py", "run", *ON, "--", *HARD))
    cloud.until(lambda: all("to end" in log.read_text() for log in cloud.here.glob("worker-*/posttrain_jax.log")))
    expected = ["-u", "launch/train.py", "--distributed", *HARD]
    assert [run["arguments"] for run in cloud.trained()] == [expected] * 4
    assert len({run["me"][0] for run in cloud.trained()}) == 4
    assert ok(cloud.run("tpu_vm.py", "status", *ON)).count("posttrain_jax: running") == 4
    assert "training, to end with hang" in ok(cloud.run("tpu_vm.py", "logs", *ON, "--slice=1", "--worker=1"))

    ok(cloud.run("tpu_vm.py", "stop", *ON))
    assert ok(cloud.run("tpu_vm.py", "status", *ON)).count("posttrain_jax: exited 75") == 4
    ok(cloud.run("tpu_vm.py", "delete", *ON))
    assert "none" in ok(cloud.run("tpu_vm.py", "status", *ON))


def test_what_is_preempted_is_created_and_started_again(cloud):
    cloud.set(states=[["PROVISIONING", "ACTIVE", "SUSPENDING", "SUSPENDED"], ["ACTIVE"]], codes=["hang", 0])
    ended = cloud.run("tpu_vm.py", "watch", *NEW, "--", *HARD)
    ok(ended)
    verbs = [verb for verb in cloud.verbs() if verb != "list"]
    start = ["ssh", "scp", "ssh", "ssh"]  # absent, send, install, run
    assert verbs[: len(start) * 2 + 3] == ["create", *start, "delete", "create", *start]
    assert set(verbs[len(start) * 2 + 3 :]) == {"ssh"}
    assert len(cloud.trained()) == 4 and len({json.dumps(run["arguments"]) for run in cloud.trained()}) == 1
    assert "m2: SUSPENDED" in ended.stdout and ended.stdout.splitlines()[-1] == "m2: ACTIVE, exited 0"


def test_a_run_that_hangs_is_killed_when_patience_ends(cloud):
    cloud.set(codes=["deaf"])
    cloud.environment["PATIENCE"] = "1"
    home = cloud.here / "worker"
    (home / "posttrain_jax.venv" / "bin").mkdir(parents=True)
    (home / "posttrain_jax.venv" / "bin" / "python").symlink_to(cloud.here / "bin" / "python")

    def worker(*arguments: str) -> str:
        environment = {**cloud.environment, "HOME": str(home)}
        command = ["bash", str(ROOT / "launch" / "worker.sh"), *arguments]
        return ok(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30))

    worker("start", "--distributed")
    cloud.until(lambda: "deaf" in (home / "posttrain_jax.log").read_text())
    worker("stop")
    cloud.until(lambda: worker("status") == "posttrain_jax: exited 137\n")


@pytest.mark.parametrize("codes, code, starts", [([75, 0], 0, 2), ([134, 0], 0, 2), ([2], 2, 1), ([9], 9, 3)])
def test_exit_codes_of_a_watched_run(cloud, codes, code, starts):
    cloud.set(codes=codes)
    ended = cloud.run("tpu_vm.py", "watch", *NEW, "--retries=2", "--", *HARD)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert len(cloud.trained()) == 2 * starts


def test_exit_codes_of_gcloud_pass_through(cloud):
    cloud.set(states=[])
    assert cloud.run("tpu_vm.py", "create", *NEW).returncode == 1
    assert cloud.run("tpu_vm.py", "logs", *ON).returncode == 1
    assert cloud.run("tpu_vm.py", "watch", *NEW, "--retries=1", "--", *HARD).returncode == 1
    assert cloud.verbs().count("create") == 3
    assert "no such queued resource" in error(cloud.run("tpu_vm.py", "wait", *ON))
    assert cloud.run("tpu_vm.py", "create", *NEW, "--create_flags=--colour=red").returncode == 2  # gcloud's own 2


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("tpu_vm.py", ["watch", *NEW, "--", *HARD]),
        ("tpu_vm.py", ["create", *NEW, "--slices=4", "--project=p", "--create_flags=--labels=a=b --network=n"]),
        ("tpu_vm.py", ["delete", *ON]),
        ("gke.py", ["create_cluster", "--cluster=c", "--type=tpu7x-256", "--slices=2", "--reservation=r"]),
        ("gke.py", ["run", "--cluster=c", "--name=m2", "--type=v5p-256", "--zone=z", "--", *HARD]),
        ("gke.py", ["logs", "--cluster=c", "--name=m2", "--worker=all", "--follow"]),
        ("gke.py", ["status", "--cluster=c"]),
        ("gke.py", ["delete", "--cluster=c", "--name=m2"]),
        ("gke.py", ["delete_cluster", "--cluster=c"]),
        ("slurm.py", ["run", "--name=m2", "--gpus=1", "--sbatch_flags=--partition=gpu", "--", *HARD]),
        ("slurm.py", ["status", "--name=m2"]),
        ("slurm.py", ["delete", "--name=m2"]),
    ],
)
def test_dry_run_prints_what_is_then_run(cloud, script, arguments):
    own, train = cluster.split(arguments)
    printed = ok(cloud.run(script, *own, "--dry_run", *(["--", *train] if train else [])))
    assert not cloud.calls() and not list(cloud.here.glob("worker*")) and not list(cloud.here.glob("*.gz"))
    promised = [shlex.split(line) for line in printed.splitlines()]
    cloud.run(script, *arguments)
    if arguments[0] == "delete" and script == "tpu_vm.py":
        assert cloud.calls() == promised
        return
    done = [call for i, call in enumerate(cloud.calls()) if call not in cloud.calls()[max(0, i - 2) : i] or i < 4]
    ours = [call for call in promised if call[0] not in ("tar", "mkdir")]
    assert done == ours


def test_gke_hands_the_command_to_the_container(cloud):
    ok(cloud.run("gke.py", "run", "--cluster=c", "--name=m2", "--type=tpu7x-256", "--slices=2", "--", *HARD))
    [call] = cloud.calls()
    assert {"--tpu-type=tpu7x-256", "--num-slices=2", "--restart-on-exit-codes=75"} <= set(call)
    assert [run["arguments"] for run in cloud.trained()] == [["-u", "launch/train.py", "--distributed", *HARD]]
    cloud.set(codes=[75])
    image = ["--image=gcr.io/p/i:1", "--type=v6e-8", "--cluster=c", "--name=m2"]
    assert cloud.run("gke.py", "run", *image, "--", *HARD).returncode == 75


def test_slurm_requeues_what_was_stopped_and_passes_on_what_failed(cloud):
    cloud.set(codes=[75, 75, 0])
    ok(cloud.run("slurm.py", "run", "--name=m2", "--gpus=2", "--", *HARD))
    expected = ["-u", str(ROOT / "launch" / "train.py"), "--distributed", *HARD]
    assert [run["arguments"] for run in cloud.trained()] == [expected] * 6
    [submitted] = [call for call in cloud.calls() if call[0] == "sbatch"]
    assert {"--signal=TERM@300", "--requeue", "--ntasks-per-node=2", "--gpus-per-node=2"} <= set(submitted)
    assert "goes back into the queue" in ok(cloud.run("slurm.py", "logs", "--name=m2"))
    cloud.set(codes=[134])
    assert cloud.run("slurm.py", "run", "--name=m2", "--gpus=2", "--", *HARD).returncode == 134


@pytest.mark.parametrize(
    "script, arguments, told",
    [
        ("tpu_vm.py", ["craete"], "the nearest is create"),
        ("tpu_vm.py", ["create", *ON, "--type=v5p-250"], "the nearest is v5p-256"),
        ("tpu_vm.py", ["create", *ON, "--type=v5e-16"], "the nearest is v5litepod-16"),
        ("tpu_vm.py", ["create", *ON, "--type=tpu7x-256"], "launch/gke.py"),
        ("tpu_vm.py", ["create", *NEW, "--reserved"], "choose one"),
        ("tpu_vm.py", ["create", *NEW, "--slces=2"], "the nearest is --slices"),
        ("tpu_vm.py", ["create", "--name=m2", "--type=v6e-8"], "--zone is missing"),
        ("tpu_vm.py", ["stop", "--name=M_2", "--zone=z"], "the nearest is m-2"),
        ("tpu_vm.py", ["run", *ON], "--config=configs/minimax_m2.py"),
        ("tpu_vm.py", ["run", *ON, "--", "--config=c.py"], "--workdir is missing"),
        ("tpu_vm.py", ["run", *ON, "--", "--config=c.py", "--workdir=runs/m2"], "/mnt/runs/m2"),
        ("tpu_vm.py", ["run", *ON, "--", "--config=c.py", "--workdir=gs://b/m2"], "a bucket is no folder"),
        ("tpu_vm.py", ["run", *ON, "--", *HARD, "--config.a=1\n2"], "line break"),
        ("gke.py", ["create_cluster", "--cluster=c", "--type=v6e-9", "--spot"], "the nearest is v6e-8"),
        ("gke.py", ["create_cluster", "--cluster=c", "--type=v6e-8"], "choose one of --spot"),
        ("slurm.py", ["run", "--name=m2", "--time=1day", "--", *HARD], "the nearest is 1:00:00"),
    ],
)
def test_mistakes_are_told_before_anything_is_called(cloud, script, arguments, told):
    assert told in error(cloud.run(script, *arguments))
    assert not cloud.calls()


def test_shell_scripts_pass_shellcheck():
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    scripts = [*sorted(map(str, (ROOT / "launch").glob("*.sh"))), str(ROOT / ".ci" / "run")]
    checked = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
