"""Rollouts recorded without training, and trained on without rolling out."""

import pytest

from tests.launch.conftest import arrays

SETTINGS = [
    "--config.sft.steps=12",
    "--config.rl.steps=1",
    "--config.rl.max_rounds=1",
    "--config.evaluation.problems=2",
]


@pytest.mark.slow
def test_recorded_and_replayed_the_first_update_is_that_of_a_plain_run(launcher, tmp_path):
    plain, recording, replaying = (tmp_path / name for name in ("plain", "recording", "replaying"))
    for workdir, more in (
        (plain, ()),
        (recording, ("--config.rl.debug=rollout_only",)),
        (replaying, ("--config.rl.debug=train_only", f"--config.rl.rollouts={recording / 'rollouts'}")),
    ):
        ended = launcher.train(workdir, *SETTINGS, *more)
        assert ended.returncode == 0, ended.stderr
    whole, kept, again = (weights(workdir, 13) for workdir in (plain, recording, replaying))
    assert again == whole != kept == weights(recording, 12)


def weights(workdir, step):
    """Every weight's bytes, by its name."""
    return {name: array.tobytes() for name, array in arrays(workdir, step).items() if name.startswith("weights.")}
