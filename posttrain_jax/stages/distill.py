"""Self-distillation of experts into one model (GLM-4.5, arXiv 2508.06471, section 3): teachers answer, one learns.

Each teacher answers prompts of its own tasks, as it was trained to; what is right is kept token for token (rejection
sampling) in files that a person can read; the student is fine-tuned on it by `sft.train`. The report filters out what
is wrong, malformed, cut off or repeating, and says nothing of how many prompts, or how many responses to each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import xxhash
from flax import nnx

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.pipeline import CONVERSATIONS
from posttrain_jax.data.sources import FileSource, JoinedSource, Record, Source
from posttrain_jax.data.tasks import TASKS, Problem
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.parallel import exchange
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.run import durable
from posttrain_jax.run.phases import Phase
from posttrain_jax.run.recipe import Distill, Recipe
from posttrain_jax.stages.answering import judge_all, prompt_tokens
from posttrain_jax.stages.experience import Judged, sample
from posttrain_jax.stages.playing import play

FULLY = 4  # times that a chunk of prompts fills the engine
RESPONSES = CONVERSATIONS._replace(encode=lambda chat, record: (record["token_ids"], record["trained"]))


def answer(
    settings: Distill,
    teacher: Phase,
    engine: Engine,
    weights: Callable[[], nnx.State],
    chat: Chat,
    folder: Path,
    seed: int,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Lets a teacher answer ``settings.prompts`` prompts; its right responses are files of records in ``folder``.

    A file is a chunk of prompts, whole or not there, and a function of the seed, so a run that was stopped goes on with
    the first that is missing. ``weights`` are asked for, in the engine's form, if one is.

    Yields:
      Prompts done so far, and ``answered``, the share of them with a right response, and ``kept``, the responses.

    Raises:
      UserError: not one response is right.
    """
    here, loaded = answers(folder) / teacher.name, None
    size = max(1, FULLY * engine.limits.slots * engine.banks // settings.samples)
    answered = kept = 0
    for first in range(0, settings.prompts, size):
        path = here / f"{first:06}.jsonl"
        numbers = range(first, min(first + size, settings.prompts))
        if not exchange.gather(path.exists())[0]:
            loaded = loaded if loaded is not None else weights()
            problems = [_problem(teacher.recipe, number) for number in numbers]
            groups = _responses(problems, settings.samples, teacher.recipe, engine, loaded, chat, f"{seed}/{path.stem}")
            lines = [line for group in groups for line in _records(group, teacher.name, settings.most, chat)]
            if jax.process_index() == 0:
                here.mkdir(parents=True, exist_ok=True)
                durable.replace(path, "".join(lines).encode("utf-8", "backslashreplace"))
        found = exchange.gather(_counts(path) if jax.process_index() == 0 else None)[0]
        answered, kept = answered + found[0], kept + found[1]
        yield numbers.stop, {"answered": answered / numbers.stop, "kept": float(kept)}
    if not kept:
        raise UserError(
            f"distill.teachers: {teacher.name!r} gave no right response to {settings.prompts} prompts, each asked"
            f" {settings.samples} times: set distill.prompts or distill.samples higher, or train it longer"
        )


def answers(folder: Path) -> Path:
    """Where the teachers' responses are, below the phase's folder."""
    return folder / "answers"


def kept(folder: Path) -> Source:
    """Every response that was kept of any teacher, for `RESPONSES`; a record is one piece that was sampled.

    Raises:
      UserError: a file was changed to something else.
    """
    files = sorted(path for path in answers(folder).glob("*/*.jsonl") if path.stat().st_size)
    return JoinedSource([FileSource(str(path), "", _read) for path in files])


def is_right(response: Judged) -> bool:
    """Whether a response was graded, is right and well-formed, and came to its end."""
    verdict = response.verdict
    ended = response.finish in ("stop", "done")
    return ended and verdict.correct and verdict.well_formed and not verdict.infrastructure


def _problem(recipe: Recipe, number: int) -> Problem:
    """The prompts of a teacher in order: its tasks and levels in turn."""
    names, tasks = recipe.tasks.names or TASKS, recipe.tasks
    index, cell = divmod(number, len(names) * (tasks.max_level + 1))
    level, place = divmod(cell, len(names))
    return worlds.problem(names[place], level, index, split="train", seed=tasks.seed)


def _responses(
    problems: Sequence[Problem],
    samples: int,
    recipe: Recipe,
    engine: Engine,
    weights: nnx.State,
    chat: Chat,
    seed: str,
) -> list[list[Judged]]:
    """The judged responses to each problem; none where its prompt is too long for the engine."""
    found: list[list[Judged]] = [[] for _ in problems]
    temperature = recipe.rl.sampling.temperature
    prompts = [prompt_tokens(chat, recipe.tasks.system, problem.question) for problem in problems]
    played = [i for i, problem in enumerate(problems) if worlds.is_world(problem.task)]
    asked = [i for i, p in enumerate(prompts) if i not in set(played) and len(p) <= engine.limits.max_prompt]
    key = jax.random.key(xxhash.xxh32_intdigest(seed.encode()))
    completions = engine.generate(weights, [prompts[i] for i in asked], key, samples=samples, temperature=temperature)
    judged = judge_all(chat, [problems[i] for i in asked], [prompts[i] for i in asked], completions, format_reward=0.0)
    for i, group in zip(asked, judged, strict=True):
        found[i] += group
    again = [i for i in played for _ in range(samples)]
    seeds = [xxhash.xxh32_intdigest(f"{seed}/{place}".encode()) for place in range(len(again))]
    episodes = play(
        engine,
        weights,
        chat,
        [problems[i] for i in again],
        seeds,
        episodes=recipe.episodes,
        temperature=temperature,
    )
    for i, episode in zip(again, episodes, strict=True):
        found[i].append(episode)
    return found


def _records(group: Sequence[Judged], teacher: str, most: int, chat: Chat) -> Iterator[str]:
    """Lines for the first ``most`` right responses to a prompt that differ; one for each piece of a response."""
    seen: set[tuple[int, ...]] = set()
    for attempt, response in enumerate(group):
        pieces = response.segments
        words = tuple(token for piece in pieces for token in piece.tokens.tolist())
        if not is_right(response) or words in seen or len(seen) == most:
            continue
        seen.add(words)
        for piece in pieces:
            record = {
                "teacher": teacher,
                "index": response.problem.index,
                "attempt": attempt,
                **sample(chat, response),
                "token_ids": piece.tokens.tolist(),
                "trained": piece.sampled.astype(int).tolist(),
            }
            yield json.dumps(record, ensure_ascii=False) + "\n"


def _read(value: Any, system: str) -> Record:
    if not isinstance(value, dict) or not (value.keys() >= {"token_ids", "trained"}):
        raise ValueError("no token_ids and trained: this is no response of a teacher")
    return value


def _counts(path: Path) -> tuple[int, int]:
    """Prompts that a file has responses to, and those responses."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    responses = {(line["task"], line["level"], line["index"], line["attempt"]) for line in lines}
    return len({each[:3] for each in responses}), len(responses)
