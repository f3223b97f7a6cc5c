"""The environments that a recipe names beside its tasks: each asks problems of levels, in two splits, from seeds."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import xxhash

from posttrain_jax.data import tasks
from posttrain_jax.data.tasks import Problem
from posttrain_jax.environments import (
    appointments,
    bank,
    code,
    database,
    expert,
    folders,
    repository,
    shop,
    shop_expert,
    verifiers,
)
from posttrain_jax.environments.environment import Environment
from posttrain_jax.environments.expert import Solve
from posttrain_jax.environments.stateful import Stateful
from posttrain_jax.environments.tools.sandboxed import shared
from posttrain_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class World:
    """An environment whose episodes are made from seeds.

    Attributes:
      make: an environment of a level.
      question: what the episode of a level and seed asks, in words; it decides the split.
      solve: does what an episode asks; None if nobody can.
      highest: level.
      canary: an environment of a level that asks the same and that no honest answer solves; see `rewards.alarm`.
    """

    make: Callable[[int], Environment]
    question: Callable[[int, int], str]
    solve: Solve | None = None
    highest: int = 0
    canary: Callable[[int], Environment] | None = None

    async def demonstrate(self, level: int, seed: int) -> dict[str, Any]:
        """A rewarded episode of a level and seed, as a record of `data.sources`.

        Raises:
          ValueError: nobody solves this world.
        """
        if self.solve is None:
            raise ValueError("a world without a solver")
        return await expert.demonstrated(self.make(level), self.solve, seed)


def _stateful(kind: type[Stateful], solve: Solve) -> World:
    return World(kind, kind.question, solve, kind.highest)


WORLDS: dict[str, World] = {
    "shop": World(shop.Shop, shop.question, shop_expert.solve, shop.HIGHEST_LEVEL),
    "calendar": _stateful(appointments.Appointments, appointments.solve),
    "files": _stateful(folders.Folders, folders.solve),
    "database": _stateful(database.Database, database.solve),
    "bank": _stateful(bank.Bank, bank.solve),
}


def _code(path: str) -> World:
    rows = code.read(path)
    return World(
        lambda level: code.Code(rows, shared()),
        lambda level, seed: code.question(code.chosen(rows, seed)),
        canary=lambda level: code.Code(rows, shared(), canary=True),
    )


def _repository(path: str) -> World:
    rows = repository.read(path)
    return World(
        lambda level: repository.Repository(rows, shared(packages=True)),
        lambda level, seed: repository.chosen(rows, seed).issue,
    )


def _verifiers(name: str) -> World:
    loaded = verifiers.Loaded(name)
    return World(lambda level: verifiers.Verifiers(loaded), lambda level, seed: loaded.question(seed))


# what stands behind the colon is a file's path, or an environment's name
KINDS: dict[str, Callable[[str], World]] = {"code": _code, "repository": _repository, "verifiers": _verifiers}


@functools.cache
def world(name: str) -> World:
    """The world of a name, of a kind and its file or environment, or the one that ``module:attribute`` holds.

    Raises:
      UserError: there is none.
    """
    module, _, attribute = name.partition(":")
    if name in WORLDS:
        return WORLDS[name]
    if module in KINDS:
        try:
            return KINDS[module](attribute)
        except UserError as error:
            raise UserError(f"tasks.names: {name!r}: {error}") from error
    try:
        found = getattr(importlib.import_module(module), attribute) if attribute else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"tasks.names: {name!r}: {error}") from error
    if not isinstance(found, World):
        raise UserError(
            f"tasks.names: {name!r} is no World; there are {', '.join(WORLDS)}, "
            f"{', '.join(f'{kind}:NAME' for kind in KINDS)}, or MODULE:ATTRIBUTE"
        )
    return found


def is_world(name: str) -> bool:
    """Whether a task is played in an environment, and not answered at once."""
    return name in WORLDS or ":" in name


def has_canaries(name: str) -> bool:
    """Whether a task can be asked so that no honest answer solves it."""
    return is_world(name) and world(name).canary is not None


def problem(name: str, level: int, index: int, split: str = "train", seed: int = 0) -> Problem:
    """`tasks.problem` of worlds as well: their ``entry`` holds the ``seed`` of the episode.

    Raises:
      UserError: what `world` and `tasks.problem` find.
    """
    if not is_world(name):
        return tasks.problem(name, level, index, split, seed)
    place = world(name)
    level = min(level, place.highest)
    for attempt in range(tasks.ATTEMPTS):
        own = xxhash.xxh32_intdigest(f"{name}/{level}/{seed}/{index}/{attempt}".encode())
        question = place.question(level, own)
        if tasks.split_of(question) == split:
            return Problem(name, level, index, question, "", "", {"seed": own})
    raise UserError(f"world {name!r} has no {split} question at level {level}")


def demonstration(name: str, level: int, index: int, seed: int) -> dict[str, Any]:
    """A world's problem of the training split, solved: a record of `data.sources`.

    Raises:
      UserError: what `problem` finds, or nobody demonstrates this world.
    """
    asked = problem(name, level, index, "train", seed)
    if world(name).solve is None:
        raise UserError(f"world {name!r} has no demonstrations: name sft.data, or leave out the stage 'sft'")
    return asyncio.run(world(name).demonstrate(asked.level, asked.entry["seed"]))


def heldout(names: Sequence[str], max_level: int, count: int, seed: int) -> list[Problem]:
    """`tasks.heldout` of tasks and worlds.

    Raises:
      UserError: all together have fewer questions.
    """
    return tasks.heldout(names, max_level, count, seed, draw=problem)


def environment(asked: Problem) -> Environment:
    """The environment in which a problem of a world is played; `reset` it with ``entry["seed"]``."""
    place = world(asked.task)
    if asked.canary and place.canary is None:
        raise ValueError(f"world {asked.task!r} has no canaries")
    return (place.canary if asked.canary and place.canary else place.make)(asked.level)
