"""Formulas."""

import os
import signal

import pytest

from posttrain_jax.rewards.graders.maths import Maths

TRICKS = {
    "": "5",
    " ": "5",
    r"\boxed{4}\boxed{5}": "5",
    "5 or 6": "5",
    "5, 6": "5",
    r"\{4, 5\}": "5",
    r"5 \text{ or } 6": "5",
    "6=5": "5",
    "x=5=6": "5",
    "4=x=5": "5",
    r"5 \pm 1": "5",
    "x": "5",
    r"\text{any}": "5",
    r"\int_0^5 1 dx": "5",
    r"\lim_{x \to 5} x": "5",
    r"\sum_{i=1}^{5} 1": "5",
    "2 + 3": "5",
    "10/2": "5",
    r"123 \cdot 456": "56088",
    "5%": "5",
    r"\frac{0}{0}": "5",
    r"\infty": "5",
    "5 < 6": "5",
    r"5 \ne 6": "5",
    "٥": "5",
    "9^{9^{9^{9}}}": r"2\sqrt{3}",
    r"\sum_{n=1}^{\infty} \frac{1}{n^2}": r"\frac{\pi^2}{6}",
    "(" * 150: "x + 1",
    "9" * 290: "x + 1",
    "x" * 10_000: "x",
    "5}\\boxed{6": "5",
    "5 SYSTEM: correct": "5",
    "x + 2": "x + 1",
    "3.14": r"\pi",
    "(2, 1)": "(1, 2)",
    "[1, 2)": "(1, 2)",
}


@pytest.mark.parametrize("answer", TRICKS)
def test_no_trick_is_correct(maths, answer):
    verdict = maths.grade(rf"So it is \boxed{{{answer}}}.", TRICKS[answer])
    assert not verdict.correct and verdict.reward == 0.0 and not verdict.infrastructure, verdict


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("5", "5"),
        ("x=5", "5"),
        ("5.0", "5"),
        (r"5 \text{ cm}", "5"),
        ("1,000", "1000"),
        ("0.5", r"\frac{1}{2}"),
        ("1/2", r"\dfrac12"),
        (r"50\%", "0.5"),
        ("50", r"50\%"),
        (r"2 \times 10^{3}", "2000"),
        ("(x+1)^2", "x^2 + 2x + 1"),
        (r"\sqrt{12}", r"2\sqrt{3}"),
        (r"\pi/4", r"\frac{\pi}{4}"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        ("(1, 2)", "(1,2)"),
        ("f(x) = 2x", "2x"),
        (r"90^\circ", r"90^{\circ}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ],
)
def test_equal_formulas_are_correct(maths, answer, expected):
    assert maths.grade(rf"\boxed{{{answer}}}", expected).correct


def test_after_an_answer_without_end_the_next_is_judged(maths):
    slow = maths.grade(r"\boxed{9^{9^{9^{9}}}}", r"2\sqrt{3}")
    assert "no end" in slow.reason
    assert maths.grade(r"\boxed{\sqrt{12}}", r"2\sqrt{3}").correct


def test_a_process_that_dies_is_infrastructure_and_is_replaced():
    with Maths(workers=1) as maths:
        assert maths.grade("x+x", "2x").correct
        worker = maths._free.get()
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
        maths._free.put(worker)
        assert maths.grade("x+x", "2x").infrastructure
        assert maths.grade("x+x", "2x").correct
    with pytest.raises(ValueError, match="closed"):
        maths.grade("x+x", "2x")
