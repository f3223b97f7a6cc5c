"""A run of phases, killed or stopped in each of them, ends to the bit as one that nothing happened to."""

import json
import re
import signal
from pathlib import Path

import pytest

EXIT_STOPPED = 75
CONFIG = Path(__file__).parents[2] / "configs" / "minimax_m2.py"
OWN = f"""
import runpy

def get_config():
    c = runpy.run_path({str(CONFIG)!r})["get_config"]("tiny")
    every = {{"weights": (), "schedule": ()}}
    c.stages = ("sft", "numbers", "bits", "joined")
    c.phases.sft = {{"tasks": {{"names": ("gcd", "count_bits"), **every}}}}
    c.phases.numbers = {{"kind": "rl", "start": "sft", "tasks": {{"names": ("gcd",), **every}}}}
    c.phases.bits = {{"kind": "rl", "start": "sft", "tasks": {{"names": ("count_bits",), **every}}}}
    c.phases.bits.rl = {{"tokens": 900, "sampling": {{"temperature": 1.2, "final": 0.8}}}}
    c.phases.joined = {{"kind": "distill", "start": "sft", "distill": {{"teachers": ("numbers", "bits")}}}}
    return c
"""
SETTINGS = """
    tasks.max_level=0 sft.steps=40
    rl.steps=6 rl.prompts=4 evaluation.every=4 run.checkpoint_every=2
    distill.prompts=64 distill.samples=4 distill.steps=6 distill.rows=4 distill.microbatch_rows=4 distill.length=128
""".split()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    own = tmp_path_factory.mktemp("config") / "own.py"
    own.write_text(OWN)
    return [f"--config={own}", *(f"--config.{setting}" for setting in SETTINGS)]


@pytest.fixture(scope="module")
def whole(launcher, given, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("phases") / "whole"
    ended = launcher.train(workdir, *given)
    assert ended.returncode == 0, ended.stderr
    return workdir


def lines(workdir, stage):
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text.splitlines(True) if line[-1] == "\n"]
    return [line for line in found if line["stage"] == stage]


def reached(stage, step):
    return lambda workdir: any(line["step"] >= step for line in lines(workdir, stage))


def answered(teacher, files):
    def moment(workdir):
        return len(list((workdir / "phases" / "joined" / "answers" / teacher).glob("*.jsonl"))) >= files

    return moment


MOMENTS = {
    "sft": reached("sft", 5),
    "numbers": reached("numbers", 3),
    "bits": reached("bits", 2),
    "answers of the first": answered("numbers", 2),
    "answers of the second": answered("bits", 2),
    "joined": reached("joined", 3),
}


@pytest.mark.slow
def test_a_phase_has_its_own_budget_of_tokens_temperature_and_measures(whole):
    bits = [line for line in lines(whole, "bits") if "used_tokens" in line]
    assert 1 < len(bits) < 6 and bits[-2]["used_tokens"] < 900 <= bits[-1]["used_tokens"]
    assert [line["temperature"] for line in bits][:1] == [1.2] and bits[-1]["temperature"] < 1.2
    numbers = lines(whole, "numbers")
    assert [line["step"] for line in numbers if "heldout" in line] == [4]
    assert [line["step"] for line in numbers if "used_tokens" in line] == [1, 2, 3, 4, 5, 6]
    assert list(json.loads((whole / "summary.json").read_text())["heldout"]) == [
        *("base", "sft", "numbers", "bits", "joined")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_the_same(launcher, given, whole, tmp_path, sent):
    workdir = tmp_path / "run"
    for place, moment in MOMENTS.items():
        hit = launcher.interrupt(workdir, sent, lambda moment=moment: moment(workdir), *given)
        expected = EXIT_STOPPED if sent == signal.SIGTERM else -signal.SIGKILL
        assert hit.returncode == expected, (place, hit.stdout, hit.stderr)
        assert not (workdir / "summary.json").exists(), place
    ended = launcher.train(workdir, *given)
    resumed = "joined" if sent == signal.SIGTERM else "(joined|bits)"  # killed, it goes on from what was saved before
    assert ended.returncode == 0 and re.search(f"resumed at {resumed} step", ended.stdout), ended.stderr
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
    answers = sorted(path.relative_to(whole) for path in whole.glob("phases/joined/answers/*/*.jsonl"))
    assert len(answers) == 16
    assert all((workdir / path).read_bytes() == (whole / path).read_bytes() for path in answers)
