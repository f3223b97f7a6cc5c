"""Collecting what reinforcement learning learns from: prompts, responses, rewards, groups worth training on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx

from posttrain_jax.chat.format import Chat
from posttrain_jax.data import tasks
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.data.tasks import Problem
from posttrain_jax.errors import UserError
from posttrain_jax.parallel import exchange
from posttrain_jax.rewards.length_bias import correlation
from posttrain_jax.rewards.shaping import length_rewards, overlong_penalty
from posttrain_jax.rewards.verifier import Verdict, verify
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Completion
from posttrain_jax.run.recipe import RL, Tasks

HOPELESS = 1000  # prompts in a row that are too long before no prompt is taken to fit


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One response, judged; ``score`` is a reward model's, before anything is made of it."""

    problem: Problem
    prompt: list[int]
    completion: Completion
    message: dict
    verdict: Verdict
    reward: float
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class Experience:
    """A step's rollouts.

    Attributes:
      groups: responses to one prompt each, with rewards that differ; what is trained on.
      everything: all trajectories sampled, for the statistics.
      draws: prompts drawn from the curriculum so far in the run.
      rounds: batches of prompts it took.
    """

    groups: list[list[Trajectory]]
    everything: list[Trajectory]
    draws: int
    rounds: int


def prompt_tokens(chat: Chat, system: str, question: str) -> list[int]:
    """The tokens of a question up to where the model takes over."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return chat.encode(messages, add_generation_prompt=True)[0]


def answered(chat: Chat, completion: Completion) -> dict:
    """The message that a response stands for; one that was cut off has no answer."""
    message = chat.parse(chat.tokenizer.decode([int(t) for t in completion.tokens]))
    return message if completion.finish == "stop" else {**message, "content": ""}


def judge(
    problem: Problem, prompt: list[int], completion: Completion, message: dict, *, format_reward: float
) -> Trajectory:
    """Verifies a response; its reward is the verdict's."""
    verdict = verify(problem, message, format_reward=format_reward)
    return Trajectory(problem, prompt, completion, message, verdict, verdict.reward)


def judge_all(
    chat: Chat,
    problems: list[Problem],
    prompts: list[list[int]],
    answers: list[list[Completion]],
    *,
    format_reward: float,
) -> list[list[Trajectory]]:
    """`judge` of every response; of several processes each reads and verifies its share of the problems."""

    def verdicts(chosen: Sequence[int]) -> list[list[tuple[dict, Verdict, float]]]:
        judged = [
            [judge(problems[i], prompts[i], c, answered(chat, c), format_reward=format_reward) for c in answers[i]]
            for i in chosen
        ]
        return [[(t.message, t.verdict, t.reward) for t in group] for group in judged]

    found = exchange.spread(range(len(problems)), verdicts)
    return [
        [Trajectory(problem, prompt, c, *told) for c, told in zip(completions, group, strict=True)]
        for problem, prompt, completions, group in zip(problems, prompts, answers, found, strict=True)
    ]


def within(budget: int | None, completion: Completion) -> Completion:
    """The response, cut off where its budget of tokens ends (Kimi K2, arXiv 2507.20534, section 3.2.3), if any."""
    if budget is None or len(completion.tokens) <= budget:
        return completion
    over = len(completion.tokens) - budget
    versions, routing = (None if x is None else x[:-over] for x in (completion.versions, completion.routing))
    tokens, logprobs = completion.tokens[:budget], completion.logprobs[:budget]
    return Completion(tokens, logprobs, "budget", versions=versions, routing=routing)


def shaped(group: list[Trajectory], settings: RL, longest: int) -> list[Trajectory]:
    """The answers to one prompt with what their lengths do to their rewards; ``longest`` tokens is their limit."""
    lengths = [len(t.completion.tokens) for t in group]
    extra = [
        overlong_penalty(length, limit=longest, buffer=settings.overlong_buffer, penalty=settings.overlong_penalty)
        - settings.budget_penalty * (t.completion.finish == "budget")
        for t, length in zip(group, lengths, strict=True)
    ]
    if settings.length_reward:
        short = length_rewards(lengths, [t.verdict.correct for t in group])
        extra = [e + settings.length_reward * s for e, s in zip(extra, short, strict=True)]
    return [dataclasses.replace(t, reward=t.reward + e) for t, e in zip(group, extra, strict=True)]


def collect(
    settings: RL,
    questions: Tasks,
    engine: Engine,
    weights: nnx.State,
    chat: Chat,
    curriculum: Curriculum,
    key: jax.Array,
    draws: int,
    mix: Callable[[list[list[Trajectory]]], list[list[Trajectory]]] = lambda groups: groups,
) -> Experience:
    """Samples groups until ``settings.prompts`` of them have rewards that differ (DAPO's dynamic sampling).

    A group whose rewards are all equal has no gradient: it is dropped and another prompt drawn in its place, for at
    most ``settings.max_rounds`` batches. The curriculum sees every group. ``mix`` may change the rewards of judged
    groups before length shapes them.

    Raises:
      UserError: prompt after prompt is longer than the engine takes.
    """
    limits = engine.limits
    budgets = {task: int(tokens) for task, _, tokens in (budget.partition("=") for budget in settings.budgets)}
    groups: list[list[Trajectory]] = []
    everything: list[Trajectory] = []
    rounds = 0
    while rounds < settings.max_rounds and len(groups) < settings.prompts:
        problems, prompts, passed_over = [], [], 0
        while len(problems) < settings.prompts - len(groups):
            problem = tasks.problem(*curriculum.choose(draws), split="train", seed=questions.seed)
            draws += 1
            prompt = prompt_tokens(chat, questions.system, problem.question)
            if len(prompt) <= limits.max_prompt:
                problems.append(problem)
                prompts.append(prompt)
                passed_over = 0
                continue
            passed_over += 1
            if passed_over == HOPELESS:
                raise UserError(
                    f"{HOPELESS} prompts in a row are longer than rollout.max_prompt={limits.max_prompt}; the last has "
                    f"{len(prompt)} tokens (task {problem.task} level {problem.level}): set rollout.max_prompt higher"
                )
        answers = engine.generate(
            weights,
            prompts,
            jax.random.fold_in(key, rounds),
            samples=settings.group_size,
            temperature=settings.sampling.temperature,
        )
        rounds += 1
        answers = [
            [within(budgets.get(problem.task), c) for c in completions]
            for problem, completions in zip(problems, answers, strict=True)
        ]
        judged = judge_all(chat, problems, prompts, answers, format_reward=settings.format_reward)
        for problem, trajectories in zip(problems, mix(judged), strict=True):
            group = shaped(trajectories, settings, limits.max_response)
            everything += group
            curriculum.observe(problem.task, problem.level, sum(t.verdict.correct for t in group), len(group))
            if len({t.reward for t in group}) > 1:
                groups.append(group)
    return Experience(groups, everything, draws, rounds)


def statistics(experience: Experience) -> dict[str, float]:
    """What a step's rollouts say about the policy; ``score_…`` are a reward model's correlations."""
    everything = experience.everything
    lengths = np.array([len(t.completion.tokens) for t in everything])
    scores = np.array([t.score for t in everything if t.score is not None])
    scored = {}
    if len(scores):
        right = np.array([float(t.verdict.correct) for t in everything])
        scored = {
            "score": float(scores.mean()),
            "score_length": correlation(scores, lengths),
            "score_correct": correlation(scores, right),
        }
    return {
        "reward": float(np.mean([t.reward for t in everything])),
        "pass_rate": float(np.mean([t.verdict.correct for t in everything])),
        "well_formed": float(np.mean([t.verdict.well_formed for t in everything])),
        "response_length": float(lengths.mean()),
        "cut_off": float(np.mean([t.completion.finish in ("length", "budget") for t in everything])),
        "repeating": float(np.mean([t.completion.finish == "repetition" for t in everything])),
        "level": float(np.mean([t.problem.level for t in everything])),
        "groups": float(len(experience.groups)),
        "rounds": float(experience.rounds),
        **scored,
    }


def sample(chat: Chat, stage: str, step: int, trajectory: Trajectory) -> dict:
    """A trajectory as it is written to samples.jsonl."""
    return {
        "stage": stage,
        "step": step,
        "task": trajectory.problem.task,
        "level": trajectory.problem.level,
        "prompt": trajectory.problem.question,
        "response": chat.tokenizer.decode([int(t) for t in trajectory.completion.tokens]),
        "reasoning": trajectory.message.get("reasoning_content", ""),
        "answer": trajectory.verdict.answer,
        "expected": trajectory.problem.answer,
        "reward": trajectory.reward,
        "correct": trajectory.verdict.correct,
        "tokens": len(trajectory.completion.tokens),
        "finish": trajectory.completion.finish,
        **({} if trajectory.score is None else {"score": trajectory.score}),
    }
