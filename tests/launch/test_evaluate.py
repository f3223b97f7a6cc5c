"""launch/evaluate.py on the weights of a short run."""

import json

import pytest


def test_scores_are_written_as_json(launcher, finished, tmp_path):
    output = tmp_path / "scores.json"
    ended = launcher.run("evaluate.py", f"--workdir={finished}", "--problems=6", f"--output={output}")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(output.read_text())
    assert (found["stage"], found["step"], found["problems"], found["samples"]) == ("rl", 8, 6, 1)
    assert found["tasks"] == ["gcd", "spell_backward"] and found["max_level"] == 1
    assert set(found["per_task"]) == {"gcd", "spell_backward"} and set(found["pass_at"]) == {"pass@1"}
    right = [sample["correct"] for sample in found["trajectories"]]
    assert len(right) == 6 and found["overall"] == pytest.approx(sum(right) / 6) == found["pass_at"]["pass@1"]
    assert {"prompt", "response", "answer", "expected", "reward", "correct", "tokens"} <= set(found["trajectories"][0])
    assert f"written to {output}" in ended.stdout and "6 held-out problems" in ended.stdout


def test_several_samples_give_pass_at_k_on_other_tasks(launcher, finished, tmp_path):
    output = tmp_path / "scores.json"
    arguments = ["--samples=4", "--temperature=1", "--tasks=chain_sum,lcm", "--max_level=0", "--problems=4"]
    ended = launcher.run("evaluate.py", f"--workdir={finished}", f"--output={output}", *arguments)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(output.read_text())
    assert set(found["pass_at"]) == {"pass@1", "pass@2", "pass@4"} and found["tasks"] == ["chain_sum", "lcm"]
    assert found["pass_at"]["pass@1"] <= found["pass_at"]["pass@2"] <= found["pass_at"]["pass@4"]
    assert len(found["trajectories"]) == 16 and {t["task"] for t in found["trajectories"]} == {"chain_sum", "lcm"}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--tasks=gdc"], "task 'gdc' is unknown"),
        (["--samples=4"], "set --temperature=1"),
        (["--problems=0"], "--problems=0"),
        (["--benchmark=gsm8k:missing.jsonl"], "missing.jsonl is missing"),
        (["--max_prompt=120"], "the longest prompt is 112"),
        (["--thinking=some"], "expected on, off, or a number of tokens"),
        (["--problems=1000000", "--max_level=0", "--tasks=products"], "held-out questions in all"),
    ],
)
def test_mistakes_are_one_line(launcher, finished, arguments, words):
    ended = launcher.run("evaluate.py", f"--workdir={finished}", *arguments)
    assert ended.returncode == 2 and words in ended.stderr and ended.stderr.count("\n") == 1


def test_benchmarks_are_asked_in_every_way_of_thinking(launcher, finished, tmp_path):
    rows = [{"question": f"{i} and 1?", "answer": f"#### {i + 1}"} for i in range(5)]
    file, output = tmp_path / "sums.jsonl", tmp_path / "scores.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [f"--benchmark=gsm8k:{file},tasks", "--problems=3", "--thinking=on,off,6", f"--output={output}"]
    ended = launcher.run("evaluate.py", f"--workdir={finished}", *arguments)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(output.read_text())
    whole = [(s["benchmark"], s["thinking"]) for s in found["scores"] if s["subset"] in ("", "all")]
    assert whole == [(name, how) for name in ("gsm8k", "tasks") for how in ("on", "off", "6")]
    assert len(found["answers"]) == 18 and {a["benchmark"] for a in found["answers"]} == {"gsm8k", "tasks"}
    for score in (s for s in found["scores"] if s["subset"] in ("", "all")):
        own = [
            a for a in found["answers"] if (a["benchmark"], a["thinking"]) == (score["benchmark"], score["thinking"])
        ]
        assert score["pass_at"]["pass@1"]["value"] == pytest.approx(sum(a["correct"] for a in own) / 3)
        assert score["tokens"] == pytest.approx(sum(a["tokens"] for a in own) / 3)
    assert "95 %" in ended.stdout and f"written to {output}" in ended.stdout
