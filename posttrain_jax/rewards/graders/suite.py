"""A repository judged by hidden tests under pytest, which have to import it.

So code that is judged shares a process with what judges it. What stands against that: the tests and the runner lie
where nothing can write, no configuration, plugin or ``conftest.py`` of the repository is read, and only a report with
this run's nonce counts, which names exactly as many tests as are expected. Beside the tests stand decoys, named by
chance, that must fail: whatever makes all tests pass makes them pass too. What is left is code that searches the memory
of its process, and objects that claim to equal everything.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from posttrain_jax.errors import UserError
from posttrain_jax.rewards.graders import reporter
from posttrain_jax.rewards.graders.code import Runner
from posttrain_jax.rewards.sandbox.program import Limits, Program
from posttrain_jax.rewards.verdict import Verdict, broken, right, wrong

REPORTER = Path(reporter.__file__).read_text()
LIMITS = Limits(seconds=60.0, cpu_seconds=60, memory=1 << 30, output=1 << 20)
DECOY = """import unittest
import pytest

def test_{0}_a():
    assert [1] == [2]

def test_{0}_b():
    with pytest.raises(ValueError):
        pass

class Test{0}(unittest.TestCase):
    def test_{0}_c(self):
        self.assertEqual(1, 2)

    def test_{0}_d(self):
        self.assertTrue(False)
"""
DECOYS = DECOY.count("def test_")


def suite(
    sandbox: Runner, files: Mapping[str, str], tests: Mapping[str, str], expected: int, limits: Limits = LIMITS
) -> Verdict:
    """Right if exactly ``expected`` tests were run on the files, and all passed.

    Args:
      sandbox: where they run; its Python has pytest.
      files: the repository, text by path.
      tests: of pytest, text by path; the names begin with ``test_``.
      expected: how many tests these are; each case of a parametrized one counts.
      limits: of all together.
    """
    nonce, mark = secrets.token_hex(16), secrets.token_hex(4)
    given = {f"tests/{path}": text for path, text in tests.items()}
    # one decoy is run before, one after the tests
    given |= {f"tests/test_{place}_{mark}.py": DECOY.format(f"{place}_{mark}") for place in ("0", "zz")}
    try:
        program = Program(
            command=["python3", "-I", "/program/report.py"],
            stdin=f"{nonce}\n".encode(),
            files=files,
            given=given | {"report.py": REPORTER},
            limits=limits,
        )
    except UserError as error:  # files that no folder can hold
        return wrong(str(error))
    outcome = sandbox.run(program)
    if outcome.ended == "infrastructure":
        return broken(outcome.reason or "the sandbox failed")
    if outcome.ended != "exit":
        return wrong(f"the limit of {outcome.ended}")
    try:
        if not outcome.stdout.startswith(nonce.encode()):
            return wrong("no report")
        ended = json.loads(outcome.stdout[len(nonce) :].decode())
    except (ValueError, RecursionError):
        return wrong("no report")
    if type(ended) is not dict:
        return wrong("no report")
    decoys = [how for test, how in ended.items() if mark in test]
    own = [how for test, how in ended.items() if mark not in test]
    if decoys != ["failed"] * (2 * DECOYS):
        return wrong("tests that must fail did not")
    if len(own) != expected:
        return wrong(f"{len(own)} tests were run, not {expected}")
    failed = sum(how != "passed" for how in own)
    return wrong(f"{failed} of {expected} tests failed") if failed else right("")
