"""A run that is stopped, killed or damaged ends, to the bit, as one that nothing happened to."""

import json
import shutil
import signal

import pytest

EXIT_STOPPED = 75


def lines(workdir):
    """The finished lines of metrics.jsonl, as they stand while a run goes on."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines(True) if line[-1] == "\n"] if path.exists() else []


def reached(workdir, stage, step):
    return lambda: any(line["stage"] == stage and line["step"] >= step for line in lines(workdir))


def saved(workdir, name):
    return (workdir / "checkpoints" / name).exists


def test_the_run_that_the_others_are_compared_with_learns_from_groups(finished, same_end, tmp_path):
    """Otherwise equality would say little: every stage must have changed the weights."""
    found = lines(finished)
    assert [line["step"] for line in found if line["stage"] == "sft"] == list(range(1, 25))
    assert [line["step"] for line in found if line["stage"] == "rl"] == list(range(1, 9))
    losses = [line["loss"] for line in found if line["stage"] == "sft"]
    assert losses[-1] < losses[0] - 1
    assert sum(line["groups"] for line in found if line["stage"] == "rl") > 8
    assert all(line["grad_norm"] > 0 for line in found if line["stage"] == "rl" and line["groups"])
    assert [line["step"] for line in found if line["stage"] == "heldout"] == [0, 1, 2]
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary["heldout"]) == ["base", "sft", "rl"]
    assert (finished / "report.html").stat().st_size > 10_000
    shutil.copytree(finished, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "checkpoints" / "32")
    (tmp_path / "other" / "checkpoints" / "28").rename(tmp_path / "other" / "checkpoints" / "32")
    with pytest.raises(AssertionError, match="weights|optimizer"):
        same_end(tmp_path / "other", finished)


def test_asked_to_stop_it_saves_and_the_same_command_goes_on(launcher, finished, same_end, tmp_path):
    workdir = tmp_path / "run"
    stopped = launcher.interrupt(workdir, signal.SIGTERM, reached(workdir, "sft", 2))
    assert stopped.returncode == EXIT_STOPPED, stopped.stderr
    assert "stopped and saved" in stopped.stdout and "Traceback" not in stopped.stderr
    steps = [line["step"] for line in lines(workdir) if line["stage"] != "heldout"]
    assert (workdir / "checkpoints" / str(steps[-1])).is_dir(), "the last step done is not the one that was saved"
    ended = launcher.train(workdir)
    assert ended.returncode == 0, ended.stderr
    assert f"resumed at sft step {steps[-1]}: checkpoint {steps[-1]} verified" in ended.stdout
    same_end(workdir, finished)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_the_same(launcher, finished, same_end, tmp_path):
    workdir = tmp_path / "run"

    def in_sft():
        return saved(workdir, "4")() and reached(workdir, "sft", 6)()

    def in_rl():
        return saved(workdir, "28")() and reached(workdir, "rl", 6)()

    moments = [in_sft, saved(workdir, "12.unfinished"), saved(workdir, "24"), in_rl]
    for number, moment in enumerate(moments):
        killed = launcher.interrupt(workdir, signal.SIGKILL, moment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert ("resumed at" in killed.stdout) == (number > 0)
    ended = launcher.train(workdir)
    assert ended.returncode == 0, ended.stderr
    assert "resumed at rl step" in ended.stdout
    same_end(workdir, finished)
    assert not list((workdir / "checkpoints").glob("*.unfinished"))
    assert not list((workdir / "checkpoints").glob("*.damaged")), "a kill must not look like damage"


def test_a_flipped_bit_costs_the_newest_checkpoint_and_no_more(launcher, finished, same_end, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    newest = workdir / "checkpoints" / "32"
    largest = max((path for path in (newest / "arrays").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0b1000
    largest.write_bytes(content)
    ended = launcher.train(workdir)
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout + ended.stderr
    assert "checkpoint 32 is damaged" in said and "set aside" in said
    assert "resumed at rl step 4: checkpoint 28 verified" in said
    assert (workdir / "checkpoints" / "32.damaged").is_dir()
    same_end(workdir, finished)
