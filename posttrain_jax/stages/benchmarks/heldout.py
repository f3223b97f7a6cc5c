"""The project's own held-out tasks, asked like any benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain_jax.data import tasks
from posttrain_jax.data.tasks import Problem
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.verifier import verify
from posttrain_jax.stages.benchmarks.question import Question, user


def read(names: Sequence[str], max_level: int, count: int, seed: int) -> list[Question]:
    """`tasks.heldout` as questions, a subset for each task.

    Raises:
      UserError: a world among the names, which is played and not answered; or too few questions.
    """
    if played := [name for name in names if worlds.is_world(name)]:
        others = ",".join(name for name in names if name not in played) or "gcd"
        raise UserError(f"{', '.join(played)} is played, not answered at once: name --tasks={others}")
    return [_question(problem) for problem in tasks.heldout(names, max_level, count, seed)]


def _question(problem: Problem) -> Question:
    return Question(
        "tasks",
        problem.task,
        f"{problem.task}/{problem.level}/{problem.index}",
        user(problem.question),
        lambda message: verify(problem, message, format_reward=0.0),
        expected=problem.answer,
    )
