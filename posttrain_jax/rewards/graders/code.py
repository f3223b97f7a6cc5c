"""Programs judged by hidden tests, outside the sandbox in which they run.

The candidate only maps inputs to outputs: it never sees what is expected, and what comes back is data. Every test has a
fresh process. An assert whose condition is more than ``value == literal`` is evaluated in a second process, which has
the candidate's values and none of its code.
"""

from __future__ import annotations

import concurrent.futures
import json
import math
import random
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from posttrain_jax.rewards.graders import asserts, driver
from posttrain_jax.rewards.graders.asserts import UNKNOWN, Check
from posttrain_jax.rewards.sandbox.program import Limits, Outcome, Program
from posttrain_jax.rewards.verdict import Verdict, broken, right, wrong

DRIVER = Path(driver.__file__).read_text()
FENCED = re.compile(r"^```[ \t]*(\w*)[ \t]*\n(.*?)^```[ \t]*$", re.S | re.M)
LIMITS = Limits(seconds=10.0, cpu_seconds=5, processes=32, output=1 << 17)


class Runner(Protocol):
    """What runs programs: a sandbox."""

    def run(self, program: Program) -> Outcome:
        """Runs one; called from several threads."""
        ...


class Failed(Exception):
    """A test that did not pass, and why."""


class Infrastructure(Exception):
    """The sandbox failed."""


def program_of(text: str) -> str:
    """The program in a response: its last fenced Python block, else the last block of no language, else all of it."""
    blocks = FENCED.findall(text)
    for languages in (("python", "py", "python3"), ("",)):
        chosen = [body for language, body in blocks if language.lower() in languages]
        if chosen:
            return chosen[-1]
    return "" if blocks else text


def code(
    sandbox: Runner,
    text: str,
    tests: str | Sequence[str],
    *,
    functions: Collection[str] = (),
    setup: str = "",
    limits: Limits = LIMITS,
    seed: int = 0,
) -> Verdict:
    """Right if the program in a response passes every assert.

    Args:
      sandbox: where it runs.
      text: the response.
      tests: asserts; see `asserts.parse`.
      functions: names of the functions that are asked for, where a builtin or a module has the same.
      setup: runs after the program and before each test, in the sandbox; it holds no expected values.
      limits: of one test.
      seed: of the order of the tests.

    Raises:
      UserError: tests that cannot be judged from outside.
    """
    checks = asserts.parse(tests, functions)
    program = program_of(text)
    random.Random(f"{seed} {program}").shuffle(checks)
    try:
        for check in checks:
            _judge(sandbox, program, setup, check, limits)
    except Failed as failure:
        return wrong(str(failure), program)
    except Infrastructure as failure:
        return broken(str(failure), program)
    return right(program)


def written(
    sandbox: Runner,
    text: str,
    cases: Sequence[tuple[str, str]],
    *,
    tolerance: float = 0.0,
    limits: Limits = LIMITS,
    seed: int = 0,
) -> Verdict:
    """Right if the program in a response writes what is expected for every input.

    Args:
      sandbox: where it runs.
      text: the response.
      cases: what is on standard input, and what standard output must be, line by line but for spaces at line ends and
        empty lines at the end.
      tolerance: relative and absolute, of numbers; 0: compare text.
      limits: of one case.
      seed: of the order of the cases.

    Raises:
      ValueError: no cases.
    """
    if not cases:
        raise ValueError("no cases")
    program, order = program_of(text), list(cases)
    random.Random(f"{seed} {program}").shuffle(order)
    try:
        for given, expected in order:
            outcome = _run(sandbox, Program(source=program, stdin=given.encode(), limits=limits))
            if outcome.status != 0:
                raise Failed(f"exit status {outcome.status}")
            if not _same_text(outcome.stdout.decode(errors="replace"), expected, tolerance):
                raise Failed("another output")
    except Failed as failure:
        return wrong(str(failure), program)
    except Infrastructure as failure:
        return broken(str(failure), program)
    return right(program)


def grade_all(jobs: Sequence[Any], *, workers: int) -> list[Verdict]:
    """Calls that take nothing and return a verdict, in ``workers`` threads; the verdicts in their order."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda job: job(), jobs))


def _judge(sandbox: Runner, program: str, setup: str, check: Check, limits: Limits) -> None:
    values = {}
    for i, expression in enumerate(check.calls):
        values[f"_{i}"] = _value(sandbox, program, setup, expression, check.modules, {}, limits)
    if check.expected is not UNKNOWN:
        passed = _equal(driver.decode(values["_0"]), check.expected, check.identical)
    else:
        if "isnan" not in check.condition and any(map(_holds_nan, values.values())):
            raise Failed("not a number")
        passed = _value(sandbox, "", "", f"bool({check.condition})", check.modules, values, limits) is True
    if not passed:
        raise Failed("another value")


def _value(
    sandbox: Runner,
    program: str,
    setup: str,
    expression: str,
    modules: Sequence[str],
    values: Mapping[str, Any],
    limits: Limits,
) -> Any:
    """The encoded value of an expression beside a program, known to decode."""
    nonce = secrets.token_hex(16)
    request = {"nonce": nonce, "program": program, "setup": setup, "modules": modules, "values": values}
    stdin = json.dumps({**request, "expression": expression}).encode()
    outcome = _run(sandbox, Program(source=DRIVER, stdin=stdin, limits=limits))
    told = outcome.stdout
    if not told.startswith(nonce.encode()):
        raise Failed("no answer" if not told else "bytes that are no answer")
    try:
        answer = json.loads(told[len(nonce) :].decode())
        if type(answer) is not dict or len(answer) != 1 or not answer.keys() <= {"value", "error"}:
            raise Failed("bytes that are no answer")
        if "error" in answer:
            raise Failed(str(answer["error"])[:100])
        driver.decode(answer["value"])
    except (ValueError, OverflowError, RecursionError):
        raise Failed("bytes that are no answer") from None
    return answer["value"]


def _run(sandbox: Runner, program: Program) -> Outcome:
    outcome = sandbox.run(program)
    if outcome.ended == "infrastructure":
        raise Infrastructure(outcome.reason or "the sandbox failed")
    if outcome.ended != "exit":
        raise Failed(f"the limit of {outcome.ended}")
    return outcome


def _equal(value: Any, expected: Any, identical: bool) -> bool:
    """Python's ``==``; both sides are of exact builtin types, so no method of the candidate's is called."""
    try:
        return value == expected and (not identical or type(value) is type(expected))
    except RecursionError:
        return False


def _holds_nan(told: Any) -> bool:
    if isinstance(told, (list, dict)):
        return any(map(_holds_nan, told if isinstance(told, list) else told.values()))
    return isinstance(told, float) and math.isnan(told)


def _same_text(given: str, expected: str, tolerance: float) -> bool:
    lines = [[line.rstrip() for line in text.rstrip().split("\n")] for text in (given, expected)]
    if lines[0] == lines[1] or not tolerance:
        return lines[0] == lines[1]
    if len(lines[0]) != len(lines[1]):
        return False
    return all(
        len(ours := a.split()) == len(theirs := b.split())
        and all(map(lambda x, y: _near(x, y, tolerance), ours, theirs))
        for a, b in zip(*lines, strict=True)
    )


def _near(given: str, expected: str, tolerance: float) -> bool:
    number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?"
    if given == expected or not all(re.fullmatch(number, text, re.ASCII) for text in (given, expected)):
        return given == expected
    return math.isclose(float(given), float(expected), rel_tol=tolerance, abs_tol=tolerance)
