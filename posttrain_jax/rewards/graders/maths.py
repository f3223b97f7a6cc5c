r"""Answers that are formulas, compared by math-verify in processes that can be killed."""

from __future__ import annotations

import json
import os
import queue
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from posttrain_jax.rewards.graders.answer import final, plain
from posttrain_jax.rewards.verdict import Verdict, broken, judged, wrong

LONGEST_FORMULA = 300  # characters
UNDONE = re.compile(r"\\(?:int|iint|oint|lim|sum|prod|frac\s*\{d|binom|det)\b|!|\\bmod|\\pmod|\\gcd|\\max|\\min")
PLAIN = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
FRACTION = re.compile(r"[-+]?(?:\d+\s*/\s*\d+|\\[dt]?frac\s*\{[-+]?\d+\}\s*\{[-+]?\d+\}|\\[dt]?frac\s*\d\d)")
POWER = re.compile(r"[-+]?\d+(?:\.\d+)?\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{?[-+]?\d{1,2}\}?")
NAMED = re.compile(r"\s*(?:[A-Za-z]\w?|\\[a-z]+|[A-Za-z]\([a-z](?:,\s*[a-z])*\))\s*=(?!=)([^=]+)")


class Died(Exception):
    """The process that compares formulas ended by itself."""


class _Worker:
    def __init__(self) -> None:
        script = str(Path(__file__).with_name("maths_worker.py"))
        self._process = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._read(60.0)

    def same(self, gold: str, answer: str, seconds: float) -> bool:
        try:
            os.write(self._process.stdin.fileno(), json.dumps([gold, answer]).encode() + b"\n")  # type: ignore[union-attr]
        except BrokenPipeError:
            raise Died from None
        return self._read(seconds) is True

    def _read(self, seconds: float) -> bool | None:
        read, deadline = b"", time.monotonic() + seconds
        pipe = self._process.stdout.fileno()  # type: ignore[union-attr]
        while not read.endswith(b"\n"):
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            chunk = os.read(pipe, 1 << 12)
            if not chunk:
                raise Died
            read += chunk
        return json.loads(read)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Maths:
    """Processes that compare formulas; one `Maths` serves any number of threads.

    >>> with Maths(workers=4) as maths:
    ...     maths.grade(r"So it is \\boxed{\\frac{1}{2}}.", "0.5")
    """

    def __init__(self, *, workers: int = 1, seconds: float = 5.0):
        """``workers`` processes, started when they are needed; an answer has ``seconds``."""
        self._seconds = seconds
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._count, self._closed = workers, threading.Event()
        for _ in range(workers):
            self._free.put(None)

    def grade(self, text: str, expected: str) -> Verdict:
        r"""Right if the final answer equals ``expected``, a formula in LaTeX without dollars.

        The answer must be worked out: a number where a number is expected, and no limit, sum or integral left standing
        that ``expected`` does not have. An answer that takes too long is wrong; a process that dies is infrastructure.
        """
        try:
            answer = final(text)
            formula = _worked_out(answer, expected)
        except ValueError as problem:
            return wrong(str(problem))
        if plain(formula) == plain(expected):
            return judged(True, "", answer)
        golds, formula = _percent(expected, formula)
        try:
            same = any(self._with_worker(lambda worker, g=g: worker.same(g, formula, self._seconds)) for g in golds)
        except TimeoutError:
            return wrong(f"no end after {self._seconds:g} s", answer)
        except Died:
            return broken("the process that compares formulas died", answer)
        return judged(same, "another value", answer)

    def _with_worker(self, ask: Callable[[_Worker], bool]) -> bool:
        if self._closed.is_set():
            raise ValueError("the workers are closed")
        worker = self._free.get()
        try:
            worker = worker or _Worker()
            return ask(worker)
        except (TimeoutError, Died):
            if worker:
                worker.close()
            worker = None
            raise
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """Ends the processes, after what they are doing."""
        self._closed.set()
        for worker in [self._free.get() for _ in range(self._count)]:
            if worker:
                worker.close()

    def __enter__(self) -> Maths:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _worked_out(answer: str, expected: str) -> str:
    """The formula an answer gives, without the name before it.

    Raises:
      ValueError: it says something else than one formula, or leaves the work to who reads it.
    """
    formula = plain(answer)
    if len(formula) > LONGEST_FORMULA:
        raise ValueError("the formula is too long")
    if "=" in formula and "=" not in expected:
        named = NAMED.fullmatch(formula)
        if not named:
            raise ValueError("not one value")
        formula = named[1].strip()
    if set(UNDONE.findall(formula)) - set(UNDONE.findall(expected)):
        raise ValueError("not worked out")
    wanted = re.sub(r"\\?%", "", plain(expected)).strip()
    bare = re.sub(
        r"\\(?:text|mathrm)\s*\{[^{}\d]*\}|\\?%|\\(?:,|;|!|quad|left|right)|\^\s*\\circ|\^\{\\circ\}|\$", "", formula
    )
    bare = re.sub(r"\s+[A-Za-z ]{1,30}$", "", bare.strip())
    if PLAIN.fullmatch(wanted) or FRACTION.fullmatch(wanted):
        whole = re.fullmatch(r"[-+]?[\d,]+", wanted)
        forms = (PLAIN, POWER) if whole else (PLAIN, POWER, FRACTION)
        if not any(form.fullmatch(bare) for form in forms):
            raise ValueError("not a number")
    return formula


def _percent(expected: str, formula: str) -> tuple[list[str], str]:
    """What an answer may equal, and the answer, without percent signs: 50 % is 50 of a hundred, or one half."""
    sign = re.compile(r"\s*\\?%")
    if not sign.search(expected):
        return [expected], sign.sub(r" \\cdot 0.01", formula)
    bare = sign.sub("", expected)
    return ([bare] if sign.search(formula) else [bare, rf"({bare}) \cdot 0.01"]), sign.sub("", formula)
