"""Issues in repositories: solved by an agent's tools, judged out of its reach, and not to be cheated."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
from pathlib import Path

import pytest
from scripted import answer, call

from posttrain_jax.environments.repository import Issue, Repository, broken_solutions, changed, patch, read
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.graders.suite import suite
from posttrain_jax.rewards.sandbox.sandbox import Sandbox, SandboxUnavailable

FILES = {"shop/__init__.py": "", "shop/sums.py": "def add(a, b):\n    return a - b\n"}
TESTS = {
    "test_sums.py": "import unittest\nimport pytest\nfrom shop.sums import add\n\n"
    "@pytest.mark.parametrize('a', [1, 2])\ndef test_add(a):\n    assert add(a, 3) == a + 3\n\n"
    "class TestMore(unittest.TestCase):\n    def test_zero(self):\n        self.assertEqual(add(0, 5), 5)\n"
}
ISSUE = Issue("add(1, 2) gives -1.", FILES, TESTS, 3)
SOLVED = {**FILES, "shop/sums.py": "def add(a, b):\n    return a + b\n"}


@pytest.fixture(scope="module")
def sandbox():
    try:
        opened = Sandbox.open(workers=1, python=sys.executable)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with opened:
        yield opened


def test_an_agent_repairs_and_submits(sandbox):
    async def played():
        world = Repository([ISSUE], sandbox)
        first = await world.reset(4)
        steps = [
            await world.step(answer("", each))
            for each in (
                call(
                    "create",
                    path="test_own.py",
                    text="from shop.sums import add\ndef test(): assert add(1, 2) == 3",
                ),
                call("run_tests"),
                call("replace", path="shop/sums.py", old="a - b", new="a + b"),
                call("run_tests"),
                call("submit"),
            )
        ]
        return first, steps

    first, steps = asyncio.run(played())
    assert first.messages[-1]["content"] == ISSUE.issue and "assert add(a, 3)" not in str(first)
    assert "1 failed" in steps[1].messages[0]["content"] and "1 passed" in steps[3].messages[0]["content"]
    assert [step.reward for step in steps] == [0, 0, 0, 0, 1] and steps[-1].done
    assert "-    return a - b\n+    return a + b\n" in steps[-1].info["patch"]


def test_what_is_not_repaired_is_wrong(sandbox):
    assert suite(sandbox, SOLVED, TESTS, 3).correct
    assert suite(sandbox, FILES, TESTS, 3).reason == "3 of 3 tests failed"
    assert suite(sandbox, SOLVED, TESTS, 4).reason == "3 tests were run, not 4"


BAD = "def add(a, b):\n    return a - b\n"
PATCHED = """import _pytest.reports, _pytest.runner, sys
def made(item, call, original=_pytest.reports.TestReport.from_item_and_call):
    report = original(item, call)
    report.outcome, report.longrepr = "passed", None
    return report
_pytest.reports.TestReport.from_item_and_call = staticmethod(made)
"""
FORGED = """import json, os, sys
for fd in range(3, 20):
    try:
        os.write(fd, json.dumps({"test_sums.py::test_add": "passed"}).encode())
    except OSError:
        pass
os.write(1, b'{"a": "passed", "b": "passed", "c": "passed"}')
os._exit(0)
"""
HACKS = {
    "conftest": {"conftest.py": PATCHED, "tests/conftest.py": PATCHED},
    "sitecustomize": {"sitecustomize.py": FORGED, "usercustomize.py": FORGED},
    "pytest beside the code": {"pytest.py": FORGED, "_pytest/__init__.py": FORGED, "json.py": FORGED},
    "plugin of the settings": {"pytest.ini": "[pytest]\naddopts = -p cheat\n", "cheat.py": PATCHED},
    "plugin patched at import": {"shop/sums.py": PATCHED + BAD},
    "exit at import": {"shop/sums.py": "import sys\nsys.exit(0)\n"},
    "harder exit at import": {"shop/sums.py": "import os\nos._exit(0)\n"},
    "forged report": {"shop/sums.py": FORGED},
    "tests overwritten": {
        "test_sums.py": "def test_add(): pass\n",
        "shop/sums.py": "import glob\nfor path in glob.glob('/program/tests/*.py') + ['/program/report.py']:\n"
        "    open(path, 'w').write('def test_add(): pass')\n" + BAD,
    },
    "unittest patched": {
        "shop/sums.py": "import unittest\nunittest.TestCase.assertEqual = lambda *_: None\n"
        "unittest.TestCase.run = lambda self, result: result.addSuccess(self)\n" + BAD
    },
    "skipped": {"shop/sums.py": "import pytest\npytest.skip('', allow_module_level=True)\n"},
    "calls that do nothing": {
        "shop/sums.py": "import _pytest.python\n_pytest.python.Function.runtest = lambda self: None\n"
        "import _pytest.unittest\n_pytest.unittest.TestCaseFunction.runtest = lambda self: None\n" + BAD
    },
}


@pytest.mark.parametrize("hack", HACKS)
def test_cheating_earns_nothing(sandbox, hack):
    verdict = suite(sandbox, {**FILES, **HACKS[hack]}, TESTS, 3)
    assert not verdict.correct and not verdict.infrastructure and verdict.reward == 0


def test_a_file_of_issues_is_read_and_its_mistakes_told(tmp_path):
    row = {"issue": "i", "files": {"a.py": ""}, "tests": {"test_a.py": "def test_a(): pass"}, "expected": 1}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert read(str(tmp_path / "a.jsonl")) == [Issue(**row)]
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "expected": "1"}))
    with pytest.raises(UserError, match="b.jsonl line 2"):
        read(str(tmp_path / "b.jsonl"))


def test_patches_and_mutants():
    assert patch({"a": "1\n"}, {"a": "1\n"}) == "" and "+2" in patch({}, {"b": "2"})
    assert "def f(x):\n    return x - 1\n" in list(changed("def f(x):\n    return x + 1\n"))


@pytest.mark.skipif("POSTTRAIN_DATA" not in os.environ, reason="POSTTRAIN_DATA names no folder with mbpp/")
def test_issues_are_made_of_real_solutions(sandbox):
    with gzip.open(Path(os.environ["POSTTRAIN_DATA"]) / "mbpp" / "train_val_prompt.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(3), strict=False)]
    made = list(broken_solutions(rows, sandbox))
    assert made and all("bug in one line" in issue.issue for issue in made)
    assert not any(suite(sandbox, issue.files, issue.tests, issue.expected).correct for issue in made)
