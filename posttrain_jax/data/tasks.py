"""Verifiable reasoning tasks: questions without end, each with a worked solution and a verifier.

Questions and verifiers are reasoning-gym's; here are the difficulty levels, the solutions, and the split. A question
belongs to the held-out split if the hash of what it asks says so, whatever level, index or seed it came from and, where
a generator has several wordings or orders for one thing, whichever it chose; so the two splits cannot share one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xxhash

from posttrain_jax.data import gym, solutions
from posttrain_jax.data.syllogisms import agrees
from posttrain_jax.errors import UserError

SPLITS = ("train", "heldout")
HELDOUT_SHARE = 8  # one question in eight is held out
ATTEMPTS = 1 << 12  # candidates looked at for one index before a level counts as having none of the split


@dataclasses.dataclass(frozen=True)
class Problem:
    """One question. ``entry`` is the generator's own record, which its verifier reads.

    A ``canary`` has no correct answer; see `rewards.alarm`.
    """

    task: str
    level: int
    index: int
    question: str
    answer: str
    reasoning: str
    entry: Mapping[str, Any] = dataclasses.field(repr=False, compare=False)
    canary: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """A generator's settings at each level (0, 1, …), the solution of an entry, which entries are usable, and what
    an entry asks: two that ask the same are in the same split."""

    area: str
    settings: Callable[[int], dict[str, Any]]
    solution: Callable[[Mapping[str, Any]], str]
    usable: Callable[[Mapping[str, Any]], bool] = lambda entry: True
    asks: Callable[[Mapping[str, Any]], str] = lambda entry: entry["question"]


def _between(**ranges: int | tuple[int, int]) -> dict[str, int]:
    """``terms=(2, 3)`` as ``min_terms=2, max_terms=3``; one number means both ends."""
    pairs = {name: span if isinstance(span, tuple) else (span, span) for name, span in ranges.items()}
    return {f"{end}_{name}": span[i] for name, span in pairs.items() for i, end in enumerate(("min", "max"))}


def _numbers(entry: Mapping[str, Any]) -> str:
    return " ".join(map(str, sorted(entry["metadata"]["numbers"])))


def _siblings(level: int) -> dict[str, Any]:
    from reasoning_gym.logic.aiw import TaskType

    return {"task_types": [TaskType.SIBLINGS], "task_type_weights": [1.0], "max_entities": 6 + 6 * level}


_REGISTRY: dict[str, Task] = {
    "chain_sum": Task(
        "arithmetic",
        lambda level: _between(terms=2 + (level + 1) // 2, digits=1 + level // 2),
        solutions.evaluation,
    ),
    "basic_arithmetic": Task(
        "arithmetic",
        lambda level: {
            **_between(terms=2 + level // 2, digits=1 + level // 3),
            "operators": ("+", "-", "*"),
            "allow_parentheses": level >= 3,
            "allow_negation": level % 2 == 1,
        },
        solutions.evaluation,
        solutions.precedence,
    ),
    "products": Task(
        "arithmetic",
        lambda level: {**_between(terms=2, digits=(1, 1 + level // 2)), "allow_negation": level % 2 == 1},
        solutions.multiplication,
    ),
    "gcd": Task(
        "arithmetic", lambda level: _between(numbers=2, value=(2, 20 * 2**level)), solutions.euclid, asks=_numbers
    ),
    "lcm": Task(
        "arithmetic",
        lambda level: _between(numbers=2, value=(2, 10 * 2**level)),
        solutions.least_multiple,
        asks=_numbers,
    ),
    "fraction_simplification": Task(
        "arithmetic",
        lambda level: {**_between(value=(1, 6 * 2**level), factor=(2, 4 + 2 * level)), "styles": ("plain",)},
        solutions.reduction,
    ),
    "prime_factorization": Task(
        "arithmetic", lambda level: _between(value=(4, 60 * 2**level)), solutions.division_chain
    ),
    "simple_equations": Task(
        "algebra",
        lambda level: {
            **_between(terms=(2, 2 + level // 3), value=(1, 10 + 5 * level)),
            "operators": ("+", "-", "*") if level else ("+", "-"),
            "operators_weights": [0.3, 0.3, 0.4] if level else [0.5, 0.5],
        },
        solutions.isolation,
        asks=lambda entry: entry["metadata"]["equation"].replace(entry["metadata"]["variable"], "x"),
    ),
    "number_sequence": Task(
        "algebra",
        lambda level: {
            **_between(terms=(4, 5), value=(-5 - 5 * level, 5 + 5 * level)),
            "max_complexity": 1 + level // 2,
        },
        solutions.rule,
    ),
    "count_bits": Task("algorithms", lambda level: _between(n=(1, 2 ** (6 + level) - 1)), solutions.binary),
    "spell_backward": Task("algorithms", lambda level: _between(word_len=(3, min(3 + level, 10))), solutions.letters),
    "leg_counting": Task(
        "algorithms",
        lambda level: _between(animals=(1, 1 + (level + 1) // 2), instances=(1, 5 + 2 * level)),
        solutions.legs,
    ),
    "aiw": Task("logic", _siblings, solutions.sisters),
    "syllogism": Task(
        "logic",
        lambda level: {
            "allow_some": level >= 1,
            "allow_some_not": level >= 2,
            "inversion_probability": 0.3 if level else 0.0,
        },
        solutions.syllogism,
        agrees,
    ),
}

TASKS: tuple[str, ...] = tuple(_REGISTRY)
AREAS: dict[str, str] = {name: task.area for name, task in _REGISTRY.items()}


def area(name: str) -> str:
    """The kind of a task, or of one of `gym`.

    Raises:
      UserError: an unknown task.
    """
    return _task(name).area


def problem(name: str, level: int, index: int, split: str = "train", seed: int = 0) -> Problem:
    """The ``index``-th question of a task at a level, in a split: the same one every time, on every machine.

    Raises:
      UserError: an unknown task or split, or a level so narrow that the split has no question there.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; there are {' and '.join(SPLITS)}")
    task, generator = _task(name), _generator(name, level, seed)
    for attempt in range(ATTEMPTS):
        entry = generator[index * ATTEMPTS + attempt]
        if split_of(task.asks(entry)) == split and task.usable(entry):
            answer = "" if entry["answer"] is None else str(entry["answer"])
            return Problem(name, level, index, entry["question"].strip(), answer, task.solution(entry), entry)
    raise UserError(f"task {name!r} has no {split} question at level {level}")


def heldout(
    names: Sequence[str], max_level: int, count: int, seed: int, draw: Callable[..., Problem] = problem
) -> list[Problem]:
    """``count`` held-out problems without repeats, dealt evenly over tasks and levels 0 … ``max_level``.

    ``draw`` gives a problem, as `problem` does. A task whose levels hold too few different questions gives its places
    to the others.

    Raises:
      UserError: all tasks together have fewer questions.
    """
    cells = [(name, level) for level in range(max_level + 1) for name in names]
    drawn = dict.fromkeys(cells, 0)
    chosen: dict[str, Problem] = {}
    while len(chosen) < count and cells:
        for cell in tuple(cells):
            fresh = _next_new(cell, drawn, chosen, seed, draw)
            if fresh is None:
                cells.remove(cell)
            elif len(chosen) < count:
                chosen[fresh.question] = fresh
    if len(chosen) < count:
        raise UserError(f"evaluation.problems={count}, but these tasks have {len(chosen)} held-out questions in all")
    return list(chosen.values())


def score(problem: Problem, answer: str) -> float:
    """reasoning-gym's verdict on an answer, from 0 to 1; 1 is right. Text it cannot read scores 0."""
    if gym.is_gym(problem.task):
        return gym.score(_generator(problem.task, problem.level, 0), problem.task, answer, problem.entry)
    try:
        return float(_generator(problem.task, problem.level, 0).score_answer(answer, dict(problem.entry)))
    except (ValueError, ArithmeticError):
        return 0.0


def _next_new(
    cell: tuple[str, int],
    drawn: dict[tuple[str, int], int],
    chosen: Mapping[str, Problem],
    seed: int,
    draw: Callable[..., Problem],
) -> Problem | None:
    for _ in range(64):
        found = draw(*cell, index=drawn[cell], split="heldout", seed=seed)
        drawn[cell] += 1
        if found.question not in chosen:
            return found
    return None


def _task(name: str) -> Task:
    if gym.is_gym(name):
        gym.check(name)
        return Task(gym.area(name), lambda level: {}, lambda entry: "")
    if name not in _REGISTRY:
        raise UserError(f"task {name!r} is unknown; there are {', '.join(TASKS)}")
    return _REGISTRY[name]


@functools.cache
def _generator(name: str, level: int, seed: int) -> Any:
    import reasoning_gym

    # a generator seeds its entry i with seed + i: far apart, so that no two share an entry
    own = xxhash.xxh32_intdigest(f"{name}/{level}/{seed}".encode())
    if gym.is_gym(name):
        return gym.generator(name, level, own << 64, 2**62)
    return reasoning_gym.create_dataset(name, seed=own << 64, size=2**62, **_task(name).settings(level))


def split_of(asked: str) -> str:
    """The split that a question belongs to."""
    return SPLITS[xxhash.xxh64_intdigest(" ".join(asked.split()).encode()) % HELDOUT_SHARE == 0]
