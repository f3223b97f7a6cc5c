"""The tasks of a synthesis, each a function of its number: a world's question, and the variant in which it is asked."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from posttrain_jax.environments import worlds
from posttrain_jax.synthesis import evolution, expert
from posttrain_jax.synthesis.expert import Played
from posttrain_jax.synthesis.variant import Variant


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
      index: number of the attempt at it.
      world, level, seed: the episode.
      variant: how it looks.
      rubrics: success criteria and the expected use of tools, in words.
    """

    index: int
    world: str
    level: int
    seed: int
    variant: Variant
    rubrics: Sequence[str]


async def task(
    index: int,
    names: Sequence[str],
    seed: int,
    max_level: int,
    real: Sequence[Mapping[str, Any]] = (),
    attempts: int = 1,
) -> Task:
    """The task of attempt number ``index``: worlds and levels take turns, questions are of the training split.

    Args:
      index: from 0.
      names: worlds.
      seed: of the synthesis.
      max_level: hardest level.
      real: declarations of tools to distract with.
      attempts: at each task.
    """
    number = index // attempts
    world = names[number % len(names)]
    level = number // len(names) % (1 + min(max_level, worlds.world(world).highest))
    asked = worlds.problem(world, level, number, "train", seed)
    needed = await expert.tools_needed(world, level, asked.entry["seed"])
    variant = evolution.evolved(world, needed, random.Random(f"variant/{seed}/{number}"), real)
    return Task(index, world, level, asked.entry["seed"], variant, rubrics(variant, needed))


def rubrics(variant: Variant, needed: frozenset[str]) -> list[str]:
    """What a good trajectory does."""
    names = ", ".join(dress.name for own, dress in variant.dresses.items() if own in needed)
    return [
        "in the end exactly what the user asked for has been done, and nothing else",
        f"uses the tools {names}, in any order that leads there",
        "calls a tool again that failed for a moment, and does not claim what no result shows",
    ]


def key(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    """Names what is asked with which tools, whatever their order: two of one key are duplicates."""
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    declared = sorted(json.dumps(tool, sort_keys=True) for tool in tools)
    return xxhash.xxh64_hexdigest(json.dumps([declared, list(messages[:first])], sort_keys=True).encode())


def provenance(made: Task, episode: Played, generator: str) -> dict[str, Any]:
    """Where a record comes from, enough to make it again."""
    variant = made.variant
    return {
        "generator": generator,
        "index": made.index,
        "world": made.world,
        "level": made.level,
        "seed": made.seed,
        "category": variant.category,
        "application": variant.application,
        "persona": variant.persona.name,
        "perturbed": perturbed(variant),
        "outcomes": dict(episode.outcomes),
        "rubrics": list(made.rubrics),
        "key": key(episode.messages, episode.tools),
    }


def perturbed(variant: Variant) -> list[str]:
    """The axes on which a variant differs from its world."""
    renamed = any(
        own != dress.name or any(a != b for a, b in dress.arguments.items()) for own, dress in variant.dresses.items()
    )
    axes = {
        "tools": renamed or bool(variant.distractors),
        "system prompt": bool(variant.system),
        "user prompt": variant.persona.name != "plain",
        "environment": bool(variant.words),
        "tool results": variant.envelope != "plain" or variant.failures > 0,
    }
    return [name for name, differs in axes.items() if differs]
