"""All of reasoning-gym as tasks: asked, scored, split, and safe from what a policy may answer."""

import os

import pytest

from posttrain_jax.data import gym, pairs, sources, tasks
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.verifier import verify

FEW = ("gym/spell_backward", "gym/simple_geometry", "gym/sokoban", "gym/maze", "gym/gsm_symbolic", "gym/mini_sudoku")


def test_every_generator_but_the_mixture_has_a_name():
    assert len(gym.names()) >= 100 and {"gym/sudoku", "gym/knights_knaves", "gym/acre"} <= set(gym.names())
    assert "gym/composite" not in gym.names()


@pytest.mark.parametrize("name", FEW)
def test_a_question_is_repeated_and_its_answer_is_right(name):
    for level in (0, 2):
        problem = tasks.problem(name, level, 5, seed=3)
        assert tasks.problem(name, level, 5, seed=3) == problem != tasks.problem(name, level, 6, seed=3)
        assert verify(problem, {"content": problem.answer}, format_reward=0.1).correct
        assert not verify(problem, {"content": "no idea"}, format_reward=0.1).correct


def test_the_splits_share_no_question():
    of = {split: {tasks.problem("gym/count_primes", 0, i, split).question for i in range(40)} for split in tasks.SPLITS}
    assert not of["train"] & of["heldout"]


def test_levels_get_harder_and_those_that_are_refused_are_the_one_below():
    assert len(tasks.problem("gym/sudoku", 0, 0).question) == len(tasks.problem("gym/sudoku", 1, 0).question)
    lengths = [len(tasks.problem("gym/chain_sum", level, 0).question) for level in (0, 3)]
    assert lengths[0] < lengths[1]
    assert tasks.problem("gym/caesar_cipher", 3, 0).question  # whose curriculum has rotations that it cannot do


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(UserError, match="nearest is 'gym/sudoku'"):
        tasks.problem("gym/sudok", 0, 0)


def test_nothing_is_demonstrated():
    with pytest.raises(UserError, match="'gym/maze' has no demonstrations: name sft.data"):
        sources.open("tasks", names=("gcd", "gym/maze"))
    with pytest.raises(UserError, match="no worked solutions"):
        pairs.open("tasks", "train", names=("gym/maze",), max_level=0, system="", seed=0)


@pytest.mark.parametrize("name", sorted(gym.EVALUATED))
def test_an_answer_is_never_run(name, tmp_path):
    problem = tasks.problem(f"gym/{name}", 0, 1)
    made = tmp_path / "made"
    for code in (
        f"open({str(made)!r}, 'w')",
        f"__import__('os').mkdir({str(made)!r})",
        f"exec('import os; os.mkdir(\"{made}\")')",
    ):
        assert tasks.score(problem, code) == 0.0 and not os.path.exists(made)
    assert tasks.score(problem, problem.answer) == 1.0


def test_formulas_that_never_end_are_refused():
    for bomb in (
        "9**9**9**9",
        "((9**29)**29**29)",
        "9**999",
        "999999999999999999",
        "factorial(99999)",
        "x.subs",
        "lambda:0",
    ):
        assert not gym.may_be_scored("gym/countdown", bomb), bomb
    for fair in ("(3 + 4)*12 - 7/2", "-2*x**3/3 + sin(x)*exp(2*x) + C", "x**(3/2) + x**(-1)"):
        assert gym.may_be_scored("gym/simple_integration", fair), fair


def test_a_scorer_that_takes_too_long_is_interrupted(monkeypatch):
    class Slow:
        def score_answer(self, answer, entry):
            while True:
                pass

    monkeypatch.setattr(gym, "SECONDS", 0.05)
    assert gym.score(Slow(), "gym/maze", "4", {}) == 0.0
