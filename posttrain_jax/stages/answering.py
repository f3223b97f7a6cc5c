"""From a question to its tokens, and from sampled tokens to a judged answer of one turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.tasks import Problem
from posttrain_jax.parallel import exchange
from posttrain_jax.rewards.shaping import length_rewards, overlong_penalty
from posttrain_jax.rewards.verdict import Verdict
from posttrain_jax.rewards.verifier import verify
from posttrain_jax.rollout.request import Completion
from posttrain_jax.run.recipe import RL
from posttrain_jax.stages.experience import Trajectory


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


def budgets_of(settings: RL) -> dict[str, int]:
    """The most tokens of an answer, task by task, where there is a limit."""
    return {task: int(tokens) for task, _, tokens in (budget.partition("=") for budget in settings.budgets)}


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
