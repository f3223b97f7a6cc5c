"""Held-out accuracy: greedy pass@1, or pass@k of several samples."""

from __future__ import annotations

import dataclasses
import math

import jax
from flax import nnx

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.tasks import Problem
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.run.recipe import Episodes
from posttrain_jax.stages.answering import judge_all, prompt_tokens
from posttrain_jax.stages.experience import Judged
from posttrain_jax.stages.playing import play

EPISODES = Episodes()


@dataclasses.dataclass(frozen=True)
class Score:
    """Share of problems solved.

    Attributes:
      overall: pass@1 over all problems.
      per_task: pass@1 of each task.
      pass_at: "pass@k" over all problems for k = 1, 2, 4, … up to the samples drawn.
      trajectories: every answer.
    """

    overall: float
    per_task: dict[str, float]
    pass_at: dict[str, float]
    trajectories: list[Judged]


def pass_at(k: int, right: int, tried: int) -> float:
    """Chance that one of ``k`` answers drawn without return from ``tried`` is right (arXiv 2107.03374, equation 1)."""
    return 1.0 - math.comb(tried - right, k) / math.comb(tried, k)


def evaluate(
    engine: Engine,
    weights: nnx.State,
    chat: Chat,
    problems: list[Problem],
    *,
    system: str,
    samples: int = 1,
    temperature: float = 0.0,
    episodes: Episodes = EPISODES,
) -> Score:
    """Answers every problem ``samples`` times; those of worlds are played.

    A question longer than the engine's prompt limit counts as unsolved; one whose environment broke down is left out.

    Raises:
      UserError: every environment broke down.
    """
    played = [i for i, problem in enumerate(problems) if worlds.is_world(problem.task)]
    prompts = [prompt_tokens(chat, system, problem.question) for problem in problems]
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= engine.limits.max_prompt]
    asked = [i for i in fitting if i not in set(played)]
    answers = engine.generate(
        weights, [prompts[i] for i in asked], jax.random.key(0), samples=samples, temperature=temperature
    )
    right = [0] * len(problems)
    trajectories: list[Judged] = []
    judged_all = judge_all(chat, [problems[i] for i in asked], [prompts[i] for i in asked], answers, format_reward=0.0)
    for i, judged in zip(asked, judged_all, strict=True):
        right[i] = sum(trajectory.verdict.correct for trajectory in judged)
        trajectories += judged
    again = [i for i in played for _ in range(samples)]
    seeds = [i * samples + sample for i in played for sample in range(samples)]
    asked_of = [problems[i] for i in again]
    episodes_played = play(engine, weights, chat, asked_of, seeds, episodes=episodes, temperature=temperature)
    lost: dict[int, str] = {}
    for i, one in zip(again, episodes_played, strict=True):
        if one.verdict.infrastructure:
            lost[i] = one.verdict.reason
            continue
        right[i] += one.verdict.correct
        trajectories.append(one)
    if lost and len(lost) == len(problems):
        raise UserError(f"not one of {len(problems)} problems could be judged: {lost[played[0]]}")
    right = {i: count for i, count in enumerate(right) if i not in lost}
    by_task: dict[str, list[float]] = {}
    for i, count in right.items():
        by_task.setdefault(problems[i].task, []).append(count / samples)
    ks = [2**i for i in range(samples.bit_length())]
    return Score(
        overall=sum(right.values()) / samples / len(right),
        per_task={task: sum(rates) / len(rates) for task, rates in by_task.items()},
        pass_at={f"pass@{k}": sum(pass_at(k, r, samples) for r in right.values()) / len(right) for k in ks},
        trajectories=trajectories,
    )
