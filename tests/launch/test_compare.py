"""launch/compare.py: what it refuses, what it runs and when, and recipes of a few steps compared and gone on with."""

import json
import os
import signal
import time
from pathlib import Path

import compare
import pytest

from posttrain_jax.errors import UserError
from posttrain_jax.stages import pipeline

ROOT = Path(__file__).parents[2]
RECIPE = """
import runpy

def get_config(scale="tiny"):
    c = runpy.run_path({source!r})["get_config"](scale)
{changes}
    return c
"""


@pytest.fixture
def configs(small, tmp_path):
    """Three recipes of the small job; the last does what the first does."""

    def write(name, *changes):
        pairs = [pair.partition("=")[::2] for pair in small if not pair.startswith("tasks.")]
        own = [f"{key} = {value if value[0].isdecimal() else repr(value)}" for key, value in pairs]
        own += ['tasks.names = ("gcd", "spell_backward")', "tasks.max_level = 1", f"name = {name!r}", *changes]
        lines = "\n".join(f"    c.{change}" for change in own)
        path = tmp_path / f"{name}.py"
        path.write_text(RECIPE.format(source=str(ROOT / "configs" / "minimax_m2.py"), changes=lines))
        return str(path)

    muon = 'optimizer.name = "muon"', 'rl.objective.name = "grpo"'
    return ",".join([write("first"), write("second", *muon), write("third")])


def refused(ended):
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--configs=configs/kimi_k3.py", "--workdir=w"], "--configs=configs/kimi_k3.py: no such file; the nearest is"),
        (["--configs=configs/kimi_k2.py"], "--workdir is missing"),
        (["--workdir=w"], "--configs is missing"),
        (["--configs=configs/kimi_k2.py", "--workdir=w", "--token=5"], "the nearest is --tokens"),
        (["--configs=configs/kimi_k2.py", "--workdir=w", "--scale=large"], "no scale 'large'; there are tiny, full"),
        (["--configs=configs/kimi_k2.py", "--workdir=w", "--tokens=0"], "such as --tokens=500000"),
        (["--configs=configs/kimi_k2.py", "--workdir=w", "--seeds=0,x"], "--seeds=0,x: expected whole numbers"),
        (["--configs=configs/kimi_k2.py,configs/kimi_k2.py", "--workdir=w"], "kimi_k2 is taken"),
        (["--configs=configs/kimi_k2.py", "--workdir=w", "--base=runs/none"], "--base=runs/none: no run there"),
    ],
)
def test_mistakes_are_told_before_anything_starts(launcher, tmp_path, arguments, words):
    ended = launcher.run("compare.py", *arguments, cwd=ROOT)
    assert words in refused(ended) and ended.stderr.count("\n") == 1
    assert not (ROOT / "w").exists()


def test_a_dry_run_says_what_is_fixed_what_differs_and_what_is_left_behind(launcher, configs, tmp_path):
    ended = launcher.run(
        "compare.py", f"--configs={configs}", f"--workdir={tmp_path / 'w'}", "--tokens=900", "--dry_run"
    )
    assert ended.returncode == 0, ended.stderr
    (optimizer,) = [line.split() for line in ended.stdout.splitlines() if line.startswith("optimizer.name")]
    assert optimizer[1:] == ["adamw", "muon", "adamw"] and "900 sampled and trained on" in ended.stdout
    assert "third does here what first does, and is not run" in ended.stdout and not (tmp_path / "w").exists()


@pytest.fixture
def command(configs, tmp_path, monkeypatch):
    """The entry point in this process, with runs that take no time: (its arguments) -> exit code, runs made.

    A run leaves one step and a summary; it fails or is stopped where ``outcomes`` says so, by the directory's name.
    """
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    made, outcomes = [], {}

    def run(recipe, folder):
        made.append(folder.name)
        outcome = outcomes.get(folder.name, 0)
        if outcome == "diverged":
            raise UserError("rl step 3: 3 updates in a row were not finite")
        if outcome:
            return outcome
        (stage,) = recipe.stages
        used = {"used_tokens": 900.0, "sampled_tokens": 500.0, "trained_tokens": 400.0, "reward": 0.5}
        (folder / "metrics.jsonl").write_text(json.dumps({"stage": stage, "step": 1, **used}) + "\n")
        heldout = {"base": 0.25, stage: 0.5 + recipe.seed / 8}
        (folder / "summary.json").write_text(json.dumps({"heldout": heldout}))
        return 0

    monkeypatch.setattr(pipeline, "run", run)

    def act(*more):
        made.clear()
        code = compare.main([f"--configs={configs}", f"--workdir={tmp_path / 'w'}", "--tokens=900", *more])
        return code, list(made)

    return act, outcomes


def test_what_is_finished_is_not_run_again_and_new_seeds_add_their_runs(command, tmp_path, capfd):
    act, _ = command
    assert act() == (0, ["base", "first-seed0", "second-seed0"])
    assert act() == (0, [])
    assert act("--seeds=0,1") == (0, ["first-seed1", "second-seed1"])
    capfd.readouterr()
    assert act("--seeds=0,1", "--json") == (0, [])
    found = json.loads(capfd.readouterr().out)
    assert found["recipes"]["second"]["mean"]["heldout"] == {"mean": 0.5625, "spread": pytest.approx(0.125 / 2**0.5)}
    assert found["recipes"]["third"]["same_run_as"] == "first" and found["common_level"] == 0.5
    assert "third" in (tmp_path / "w" / "compare.html").read_text()


def test_a_run_that_is_stopped_ends_the_command_and_one_that_diverges_does_not(command, tmp_path):
    act, outcomes = command
    outcomes["second-seed0"] = 75
    assert act("--seeds=0,1") == (75, ["base", "first-seed0", "second-seed0"])
    outcomes["second-seed0"] = "diverged"
    with pytest.raises(UserError, match="^second-seed0: rl step 3"):
        act("--seeds=0,1")
    found = json.loads((tmp_path / "w" / "compare.json").read_text())
    assert [run["finished"] for run in found["recipes"]["second"]["runs"]] == [False, True]
    assert [run["finished"] for run in found["recipes"]["first"]["runs"]] == [True, True]
    outcomes.clear()
    assert act("--seeds=0,1") == (0, ["second-seed0"])


def test_another_budget_in_the_same_directory_is_refused_with_what_was_changed(command):
    act, _ = command
    act()
    with pytest.raises(UserError, match="first-seed0 holds another run: config.rl.tokens was 900 and is now 800"):
        act("--tokens=800")


@pytest.mark.slow
def test_recipes_on_a_trained_base_end_with_their_tokens_in_one_report(launcher, configs, finished, tmp_path):
    workdir = tmp_path / "compared"
    arguments = [f"--configs={configs}", f"--workdir={workdir}", f"--base={finished}", "--tokens=700", "--every=1"]
    ended = launcher.run("compare.py", *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found == json.loads((workdir / "compare.json").read_text())
    assert {path.name for path in workdir.iterdir()} == {"first-seed0", "second-seed0", "compare.json", "compare.html"}
    for name in ("first", "second"):
        lines = [json.loads(line) for line in (workdir / f"{name}-seed0" / "metrics.jsonl").read_text().splitlines()]
        used = [line["used_tokens"] for line in lines if "used_tokens" in line]
        assert used[-1] >= 700 > used[-2] and found["recipes"][name]["mean"]["tokens"]["mean"] == used[-1]
        assert sum("heldout" in line for line in lines) == len(used) - 1  # the end is measured as after any stage
        assert found["recipes"][name]["runs"][0]["finished"]
    first, third = (found["recipes"][name] for name in ("first", "third"))
    assert third["same_run_as"] == "first" and third["mean"] == first["mean"]
    assert found["components"]["optimizer"]["third"]["same_as"] == "first"
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("metrics.jsonl")}
    again = launcher.run("compare.py", *arguments)
    assert again.returncode == 0 and again.stdout.count("finished before") == 2
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("metrics.jsonl")} == before
    other = launcher.run("compare.py", *arguments[:-2], "--tokens=800")
    assert "rl.tokens was 700 and is now 800" in refused(other)


@pytest.mark.slow
def test_a_comparison_that_was_stopped_ends_as_one_that_was_not(launcher, configs, tmp_path):
    def arguments(workdir):
        return [f"--configs={configs}", f"--workdir={workdir}", "--tokens=900", "--seeds=0,1", "--every=2"]

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    ended = launcher.run("compare.py", *arguments(whole))
    assert ended.returncode == 0, ended.stderr
    for marker, sent in ((stopped / "base", signal.SIGKILL), (stopped / "second-seed0", signal.SIGTERM)):
        process = launcher.start("compare.py", *arguments(stopped))
        while not (marker / "metrics.jsonl").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(sent)
        process.communicate(timeout=120)
        assert process.returncode == (75 if sent == signal.SIGTERM else -sent)
    ended = launcher.run("compare.py", *arguments(stopped))
    assert ended.returncode == 0 and "first-seed0: finished before" in ended.stdout, ended.stderr
    for run in ("first-seed0", "second-seed0", "first-seed1", "second-seed1"):
        metrics = [(folder / run / "metrics.jsonl").read_bytes() for folder in (whole, stopped)]
        assert metrics[0] == metrics[1] and os.path.getsize(whole / run / "metrics.jsonl")
    found = json.loads((stopped / "compare.json").read_text())
    assert found["recipes"]["first"]["mean"]["heldout"]["spread"] is not None
