"""A run whose steps do not wait for their last responses, killed while some are under way."""

import json
import signal

import pytest

# one slot a response would hold everything at once: with fewer, groups end at different times
SETTINGS = [
    *("--config.rl.carry_over=1", "--config.run.checkpoint_every=1", "--config.rollout.slots=4"),
    *("--config.rollout.banks=2", "--config.rollout.decode_chunk=2", "--config.sft.steps=12"),
]


def lines(workdir):
    """The finished lines of metrics.jsonl of RL, as they stand while a run goes on."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text.splitlines(True) if line[-1] == "\n"]
    return [line for line in found if line["stage"] == "rl"]


@pytest.mark.slow
def test_killed_with_responses_under_way_it_ends_the_same(launcher, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ended = launcher.train(whole, *SETTINGS)
    assert ended.returncode == 0, ended.stderr
    steps = lines(whole)
    assert any(line["fresh"] < 1.0 for line in steps), "nothing was carried over"
    assert all(line["mismatch"] < 1e-3 for line in steps if line["groups"]), [line["mismatch"] for line in steps]
    saved = [json.loads(file.read_text())["content"] for file in whole.glob("checkpoints/*/progress.json")]
    carried = [progress["cursor"]["flight"] for progress in saved]
    for step in (2, 5):
        killed = launcher.interrupt(broken, signal.SIGKILL, lambda step=step: len(lines(broken)) >= step, *SETTINGS)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    ended = launcher.train(broken, *SETTINGS)
    assert ended.returncode == 0 and "resumed at rl step" in ended.stdout, ended.stderr
    assert (broken / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert (broken / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert any(any(m["begun"] for group in flight for m in group["memories"]) for flight in carried)


@pytest.mark.slow
def test_one_device_samples_while_the_other_trains(launcher, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    apart = [*SETTINGS, "--config.rollout.beside=True", "--config.rollout.banks=1"]
    ended = launcher.train(tmp_path, *apart)
    assert ended.returncode == 0, ended.stderr
    steps = lines(tmp_path)
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert all(line["mismatch"] < 1e-3 for line in steps if line["groups"])
