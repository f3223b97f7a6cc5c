"""Exercises judged by hidden tests, the Python that remembers, and canaries."""

from __future__ import annotations

import asyncio
import json

import pytest
from scripted import answer, call

from posttrain_jax.data.tasks import Problem
from posttrain_jax.environments import worlds
from posttrain_jax.environments.code import Code, Exercise, question, read
from posttrain_jax.environments.environment import EnvironmentFailure
from posttrain_jax.environments.tools.interpreter import Interpreter
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.sandbox.program import Limits, Outcome
from posttrain_jax.rewards.sandbox.sandbox import Sandbox, SandboxUnavailable
from posttrain_jax.run.recipe import Tasks
from posttrain_jax.stages.drawing import asked

ADD = Exercise("Write add(a, b).", ("assert add(1, 2) == 3", "assert add(2, 2) == 4"))
RIGHT = "```python\ndef add(a, b):\n    return a + b\n```"


@pytest.fixture(scope="module")
def sandbox():
    try:
        opened = Sandbox.open(workers=1)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with opened:
        yield opened


class Broken:
    """A sandbox that fails."""

    def run(self, program):
        return Outcome(b"", b"", None, "infrastructure", {}, "no launcher")

    async def start(self, program):
        return self.run(program)


def played(world, *messages):
    async def steps():
        await world.reset(0)
        return [await world.step(message) for message in messages]

    return asyncio.run(steps())


def test_an_agent_tries_and_answers(sandbox):
    tried, last = played(Code([ADD], sandbox), answer("", call("python", code="1 + 2")), answer(RIGHT))
    assert tried.messages[0]["content"] == "3" and not tried.done
    assert last.done and last.reward == 1.0
    (wrong,) = played(Code([ADD], sandbox), answer(RIGHT.replace("+", "-")))
    assert wrong.done and wrong.reward == 0.0


def test_the_question_names_the_call_and_not_what_is_expected():
    assert "add(1, 2)" in question(ADD) and "== 3" not in question(ADD)


def test_a_canary_asks_the_same_and_no_answer_solves_it(sandbox):
    honest, canary = (asyncio.run(Code([ADD], sandbox, canary=c).reset(0)) for c in (False, True))
    assert honest.messages == canary.messages
    for text in (RIGHT, RIGHT.replace("a + b", "4"), "import os\nos._exit(0)"):
        assert played(Code([ADD], sandbox, canary=True), answer(text))[0].reward == 0.0


def test_a_sandbox_that_fails_is_nobodys_reward():
    for message in (answer(RIGHT), answer("", call("python", code="1"))):
        with pytest.raises(EnvironmentFailure, match="no launcher"):
            played(Code([ADD], Broken()), message)


def test_python_remembers(sandbox):
    python = Interpreter(sandbox, Limits(seconds=1.0, cpu_seconds=1)).python

    def run(code):
        return asyncio.run(python(code))

    assert run("import random\nx = 3\ndef f(y):\n    return x * y\nopen('a', 'w').write('kept')\nprint('a')") == "a"
    assert run("f(5), open('a').read()") == "(15, 'kept')"
    first = run("r = random.random()\nr")
    assert run("r") == first
    assert "ZeroDivisionError" in run("z = 1\n1 / 0") and run("z") == "1"
    assert "limit of" in run("x = 7\nwhile True: pass") and run("x") == "3"
    assert "forgotten" in run("import os\nos._exit(0)") and run("print(x)") == "3"
    assert run("exit()") == "[no output]"


def test_a_recipe_names_a_file_of_exercises(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"Write f{i}(x).", "test_list": [f"assert f{i}(1) == {i}"]} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    name = f"code:{path}"
    problem = worlds.problem(name, 3, 5)
    assert problem.level == 0 and isinstance(worlds.world(name).question(0, problem.entry["seed"]), str)
    seen = {split: {worlds.problem(name, 0, i, split).question for i in range(40)} for split in ("train", "heldout")}
    assert seen["train"] and seen["heldout"] and not seen["train"] & seen["heldout"]
    path.write_text(json.dumps({"prompt": "x", "tests": ["print(1)"]}))
    with pytest.raises(UserError, match="a.jsonl line 1: no exercise: a test that is no assert"):
        read(str(path))
    with pytest.raises(UserError, match="nothere"):
        worlds.world(f"code:{tmp_path}/nothere.jsonl")


def test_a_share_of_the_exercises_are_canaries_the_same_every_time(tmp_path):
    rows = [{"prompt": f"Write f{i}(x).", "tests": [f"assert f{i}(1) == {i}"]} for i in range(20)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    name = f"code:{tmp_path}/b.jsonl"
    problems = [asked(Tasks(canary_share=0.25), name, 0, i) for i in range(400)]
    assert 60 < sum(p.canary for p in problems) < 140
    assert problems == [asked(Tasks(canary_share=0.25), name, 0, i) for i in range(400)]
    assert not any(asked(Tasks(canary_share=0.25), each, 0, i).canary for each in ("gcd", "shop") for i in range(50))
    assert not asked(Tasks(), name, 0, 0).canary
    with pytest.raises(ValueError, match="no canaries"):
        worlds.environment(Problem("shop", 0, 0, "", "", "", {"seed": 0}, canary=True))
