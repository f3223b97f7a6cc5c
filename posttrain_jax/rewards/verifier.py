"""The reward of a verifiable answer: right or wrong, and well-formed or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain_jax.data import gym, tasks
from posttrain_jax.data.tasks import Problem
from posttrain_jax.rewards.verdict import Verdict, right, wrong

LONGEST_ANSWER = 200  # characters; no task's answer comes near it


def verify(problem: Problem, message: Mapping[str, Any], *, format_reward: float) -> Verdict:
    """Judges a parsed assistant message; see `Chat.parse`. Well-formed is one line of answer after the thinking;
    tasks of `data.gym` may ask for several.

    Partial marks of a generator's verifier count as wrong: they reward copying the question.
    """
    answer = (message.get("content") or "").strip()
    several = gym.is_gym(problem.task)
    if not 0 < len(answer) <= (gym.LONGEST if several else LONGEST_ANSWER) or ("\n" in answer and not several):
        return wrong("not one line of answer", answer, well_formed=False)
    if message.get("tool_calls"):
        return wrong("a tool call in place of an answer", answer, well_formed=False)
    if tasks.score(problem, answer) >= 1.0:
        return right(answer)
    return wrong("not the answer", answer, reward=format_reward)
