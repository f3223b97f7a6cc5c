"""The next problem to learn from."""

from __future__ import annotations

import dataclasses

import xxhash

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.data.tasks import TASKS, Problem
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.run.recipe import Tasks
from posttrain_jax.stages.answering import prompt_tokens

HOPELESS = 1000  # prompts in a row that are too long before no prompt is taken to fit


def asked(questions: Tasks, name: str, level: int, index: int) -> Problem:
    """A problem to learn from, or a canary in its place: the same one every time.

    Raises:
      UserError: what `worlds.problem` finds.
    """
    problem = worlds.problem(name, level, index, split="train", seed=questions.seed)
    chance = xxhash.xxh32_intdigest(f"canary/{questions.seed}/{name}/{index}".encode()) / 2**32
    canary = chance < questions.canary_share and worlds.has_canaries(name)
    return dataclasses.replace(problem, canary=problem.canary or canary)


def in_turn(questions: Tasks, number: int, offset: int = 0) -> Problem:
    """The ``number``-th of problems to learn from, tasks and levels in turn; each one's index is ``offset`` higher."""
    names = questions.names or TASKS
    index, cell = divmod(number, len(names) * (questions.max_level + 1))
    level, place = divmod(cell, len(names))
    return worlds.problem(names[place], level, offset + index, split="train", seed=questions.seed)


def draw(
    questions: Tasks, curriculum: Curriculum, chat: Chat, draws: int, longest: int
) -> tuple[Problem, list[int], int]:
    """The next problem whose prompt has at most ``longest`` tokens, its prompt, and ``draws`` after it.

    The prompt of a world's problem is empty here: the world begins the conversation.

    Raises:
      UserError: prompt after prompt is longer.
    """
    problem, prompt = None, []
    for _ in range(HOPELESS):
        problem = asked(questions, *curriculum.choose(draws))
        draws += 1
        world = worlds.is_world(problem.task)
        prompt = [] if world else prompt_tokens(chat, questions.system, problem.question)
        if len(prompt) <= longest:
            return problem, prompt, draws
    assert problem is not None
    raise UserError(
        f"{HOPELESS} prompts in a row are longer than rollout.max_prompt={longest}; the last has {len(prompt)} tokens"
        f" (task {problem.task} level {problem.level}): set rollout.max_prompt higher"
    )
