"""posttrain_jax.run.trajectories and launch/view.py: what is asked for is found, and shown as it was said."""

import io
import json

import pytest
import view
from rich.console import Console

from posttrain_jax.errors import UserError
from posttrain_jax.run.trajectories import Wanted, choose, shown

CALL = {"id": "1", "function": {"name": "buy", "arguments": {"item": "tea", "count": 2}}}
EPISODE = [
    {"role": "system", "content": "You shop."},
    {"role": "user", "content": "Buy [bold]tea[/bold]."},
    {"role": "assistant", "content": "", "reasoning_content": "so " * 200, "tool_calls": [CALL]},
    {"role": "tool", "content": "x" * 500},
    {"role": "assistant", "content": "Done\x1b[2J."},
]


def sample(step, **changes):
    told = {"stage": "rl", "step": step, "task": "gcd", "level": 1, "prompt": "6 and 27?", "reasoning": "27%6=3"}
    told |= {"response": "27%6=3\n</think>\n\n3[e~[", "answer": "3", "expected": "3", "reward": 1.0, "correct": True}
    return {**told, "parts": {"verifier": 1.0}, "tokens": 10 + step, "finish": "stop", **changes}


SAMPLES = [
    sample(1, reward=0.1, tokens=90),
    sample(2, task="shop", messages=EPISODE, rewards=[0.0, 0.5], reward=0.5),
    sample(2, reward=-0.5, stage="heldout"),
    sample(9),
]


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in SAMPLES))
    return tmp_path


def drawn(found, full=False):
    console = Console(record=True, width=100, file=io.StringIO(), markup=False)
    for each in found:
        console.print(shown(each, full))
    return console.export_text()


@pytest.mark.parametrize(
    ("wanted", "sort", "steps"),
    [
        (Wanted(), "step", [9, 2, 2, 1]),
        (Wanted(stage="rl"), "reward", [9, 2, 1]),
        (Wanted(stage="rl"), "length", [1, 9, 2]),
        (Wanted(step=2, task="shop"), "step", [2]),
        (Wanted(reward=">0.1"), "step", [9, 2]),
        (Wanted(reward=">= 0.1"), "step", [9, 2, 1]),
        (Wanted(reward="<0"), "step", [2]),
        (Wanted(reward="1"), "step", [9]),
    ],
)
def test_what_is_asked_for_in_the_order_asked_for(workdir, wanted, sort, steps):
    found, total = choose(workdir, wanted, sort, 10)
    assert [each["step"] for each in found] == steps and total == len(steps)
    assert choose(workdir, wanted, sort, 1) == (found[:1], total)


@pytest.mark.parametrize(
    ("wanted", "sort", "told"),
    [
        (Wanted(task="shp"), "step", "--task=shp: none there; the nearest is shop (all: gcd, shop)"),
        (Wanted(stage="lr"), "step", "--stage=lr: none there; the nearest is rl"),
        (Wanted(stage="rl", step=7), "step", "--step=7: none there; the nearest is 9"),
        (Wanted(step=1, task="shop"), "step", "--step=1: none there; the nearest is 2"),
        (Wanted(reward=">1"), "step", "rewards there are -0.500 to 1.000"),
        (Wanted(reward="good"), "step", "--reward='good': expected a bound such as '>0.5'"),
        (Wanted(), "len", "the nearest is length"),
    ],
)
def test_nothing_found_is_told_with_the_nearest(workdir, wanted, sort, told):
    with pytest.raises(UserError) as error:
        choose(workdir, wanted, sort, 5)
    assert told in str(error.value)


def test_a_run_under_way_may_be_within_a_line(workdir):
    with (workdir / "samples.jsonl").open("a") as file:
        file.write('{"stage": "rl", "step": 10, "ta')
    assert choose(workdir, Wanted(), "step", 9)[1] == 4
    with (workdir / "samples.jsonl").open("a") as file:
        file.write("\n" + json.dumps(sample(11)) + "\n")
    with pytest.raises(UserError, match="line 5: is not JSON"):
        choose(workdir, Wanted(), "step", 9)


@pytest.mark.parametrize("line", ["[]", "{}", json.dumps(sample(1, reward="much"))])
def test_a_line_that_is_no_trajectory_is_named(workdir, line):
    (workdir / "samples.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="line 1: is no trajectory"):
        choose(workdir, Wanted(), "step", 9)


def test_no_run_and_an_empty_one(workdir):
    with pytest.raises(UserError, match=f"no samples.jsonl there; the nearest is {workdir}"):
        choose(workdir.with_name(workdir.name + "x"), Wanted(), "step", 1)
    (workdir / "samples.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no trajectory yet"):
        choose(workdir, Wanted(), "step", 1)


def test_an_episode_is_folded_unless_it_is_asked_for_in_full():
    text = drawn([SAMPLES[1]])
    assert "rl step 2 · shop · level 1" in text and "reward 0.500 (verifier 1.000, turns 0 0.5)" in text
    assert "Buy [bold]tea[/bold]." in text and '→ buy {"item": "tea", "count": 2}' in text
    assert "\x1b" not in text and "Done\ufffd[2J." in text
    assert "more characters" in text and "x" * 500 not in text.replace("\n", "").replace(" ", "")
    full = drawn([SAMPLES[1]], full=True).replace("\n", "").replace(" ", "")
    assert "x" * 500 in full and "so" * 200 in full and "morecharacters" not in full


def test_a_single_answer_has_its_thinking_apart():
    lines = [line.strip() for line in drawn([SAMPLES[3]]).splitlines()]
    assert lines[2:] == ["user", "6 and 27?", "assistant", "27%6=3", "</think>", "", "3[e~[", ""]
    cut = drawn([sample(1, response="27%6=3")]).splitlines()
    assert sum("27%6=3" in line for line in cut) == 1, "an answer that never left its thinking is said once"


def test_the_command(workdir, capsys):
    assert view.main([f"--workdir={workdir}", "--count=1", "--stage=rl"]) == 0
    printed = capsys.readouterr().out
    assert "rl step 9" in printed and "1 of 3 trajectories" in printed and "\x1b" not in printed
    with pytest.raises(UserError, match="--workdir is missing"):
        view.main([])
