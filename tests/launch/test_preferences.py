"""A run through a reward model to reinforcement learning from it, and the same one killed on the way."""

import json
import signal

import pytest

MORE = [
    f"--config.{setting}"
    for setting in """
    stages=sft stages=reward_model stages=rl sft.steps=8 rl.steps=4
    reward_model.steps=12 reward_model.rows=4 reward_model.microbatch_rows=2 reward_model.length=128
    reward_model.on_too_long=skip reward_model.heldout=16 rl.reward.model_weight=0.5
""".split()
]


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines(True) if line[-1] == "\n"] if path.exists() else []


@pytest.mark.slow
def test_rewards_come_from_the_trained_model_and_a_kill_changes_nothing(launcher, tmp_path):
    whole, other = tmp_path / "whole", tmp_path / "other"
    ended = launcher.train(whole, *MORE)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((whole / "summary.json").read_text())
    assert list(summary["heldout"]) == ["base", "sft", "rl"] and list(summary["pair_accuracy"]) == ["reward_model"]
    assert 0 <= summary["pair_accuracy"]["reward_model"] <= 1
    found = lines(whole)
    assert all("score_length" in line for line in found if line["stage"] == "rl")
    assert [line["pairs"] > 0 for line in found if line["stage"] == "reward_model"] == [True] * 12

    def learning():
        saved = any(int(one.name) > 8 for one in (other / "checkpoints").glob("*[0-9]"))
        return saved and any(line["stage"] == "reward_model" and line["step"] >= 6 for line in lines(other))

    killed = launcher.interrupt(other, signal.SIGKILL, learning, *MORE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = launcher.train(other, *MORE)
    assert again.returncode == 0, again.stderr
    assert "resumed at reward_model step" in again.stdout
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (other / name).read_bytes() == (whole / name).read_bytes()
