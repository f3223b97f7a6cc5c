"""Data made by the entry point: killed and typed again it is the same, and training reads it."""

import json
import signal
import subprocess
import time

import pytest


def whole_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_killed_synthesis_ends_as_one_left_alone_and_every_line_can_be_used(launcher, tmp_path):
    whole, other = tmp_path / "whole", tmp_path / "other"
    ended = launcher.run("synthesize.py", f"--out={whole}", "--count=400", "--pairs=5")
    assert ended.returncode == 0, ended.stderr
    assert "400 verified combinations" in ended.stdout and "preference pairs" in ended.stdout
    process = launcher.start("synthesize.py", f"--out={other}", "--count=400")
    deadline = time.monotonic() + 60
    while whole_lines(other / "records.jsonl") < 50 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 50 <= whole_lines(other / "records.jsonl") < 400
    assert launcher.run("synthesize.py", f"--out={other}", "--count=400").returncode == 0
    for name in ("records.jsonl", "rejected.jsonl", "report.json", "coverage.svg", "sample.html"):
        assert (other / name).read_bytes() == (whole / name).read_bytes()
    checked = launcher.run("check_data.py", str(whole / "records.jsonl"), str(whole / "pairs.jsonl"))
    assert checked.returncode == 0 and "0 refused" in checked.stdout


def test_evaluation_data_is_left_out(launcher, tmp_path):
    first = tmp_path / "first"
    assert launcher.run("synthesize.py", f"--out={first}", "--count=10", "--worlds=bank").returncode == 0
    asked = json.loads((first / "records.jsonl").read_text().splitlines()[3])["messages"]
    (tmp_path / "held.jsonl").write_text(json.dumps(next(m["content"] for m in asked if m["role"] == "user")) + "\n")
    flags = ["--count=9", "--worlds=bank", f"--evaluation={tmp_path / 'held.jsonl'}"]
    ended = launcher.run("synthesize.py", f"--out={tmp_path / 'second'}", *flags)
    assert ended.returncode == 0, ended.stderr
    assert "in the evaluation data" in ended.stdout


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--worlds=bakn"], "no world 'bakn' that can be varied; the nearest is bank"),
        (["--generator=gpt"], "--generator=gpt: expected procedural or a URL"),
        (["--tools=nowhere.json"], "nowhere.json"),
        (["--count=0"], "--count=0"),
    ],
)
def test_mistakes_are_one_line(launcher, tmp_path, flags, told):
    ended: subprocess.CompletedProcess = launcher.run("synthesize.py", f"--out={tmp_path / 'out'}", *flags)
    assert ended.returncode == 2 and told in ended.stderr and len(ended.stderr.strip().splitlines()) == 1


def test_a_model_that_cannot_be_reached_ends_in_one_line(launcher, tmp_path):
    flags = ["--generator=http://127.0.0.1:9/v1", "--count=1", "--concurrency=1", "--tries=1"]
    ended = launcher.run("synthesize.py", f"--out={tmp_path}", *flags)
    assert ended.returncode == 2 and "the same command goes on from here" in ended.stderr
