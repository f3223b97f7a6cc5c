"""Draws variants of a world: an application, tools in other words, a toolset, a system prompt, a persona, outcomes."""

from __future__ import annotations

import functools
import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from posttrain_jax.environments import worlds
from posttrain_jax.environments.shop import Shop
from posttrain_jax.environments.stateful import Stateful
from posttrain_jax.environments.tools.tool import Tool
from posttrain_jax.synthesis import domains
from posttrain_jax.synthesis.domains import Application
from posttrain_jax.synthesis.personas import PERSONAS
from posttrain_jax.synthesis.variant import ENVELOPES, Dress, Variant
from posttrain_jax.synthesis.verbs import ARGUMENTS, STYLES, VERBS, styled

ROLES = ("You work for {place}.", "You are the assistant of {place}.", "You run {place} for its customers.")
RULES = (
    "Do what is asked and nothing else.",
    "Look before you act.",
    "Be brief.",
    "When a tool fails for a moment, call it again.",
    "Never guess a number.",
    "Only the tools can change anything.",
)
ONE_CALL = "Call one tool at a time."
FAILURES = (0.0, 0.0, 0.1, 0.3)


def evolved(world: str, used: Collection[str], rng: random.Random, real: Sequence[Mapping[str, Any]] = ()) -> Variant:
    """A variant in which the ``used`` tools of a world are there.

    Args:
      world: name of the world.
      used: the world's names of the tools that the task needs; any other may be left out.
      rng: all that is drawn.
      real: declarations of tools to distract with, beside those of other worlds.
    """
    application = rng.choice(domains.of_world(world))
    words = replaced(application, rng)
    dresses = dressed(world, application, used, rng)
    taken = {dress.name for dress in dresses.values()}
    parallel = rng.random() < 0.8
    return Variant(
        category=application.category,
        application=application.name,
        words=words,
        dresses=dresses,
        distractors=distractors(world, taken, rng.choice((0, 0, 1, 2, 4)), rng, real),
        system=prompted(application, parallel, rng),
        persona=rng.choice(PERSONAS),
        envelope=rng.choice(ENVELOPES),
        failures=rng.choice(FAILURES),
        thinking=rng.random() < 0.8,
        parallel=parallel,
    )


def replaced(application: Application, rng: random.Random) -> dict[str, str]:
    """Other words for a world's, no two alike."""
    words = dict(application.words)
    for slot, own in domains.SLOTS[application.world].items():
        free = [word for word in application.pools.get(slot, ()) if word not in words.values()]
        if free:
            words |= dict(zip(own, rng.sample(free, len(own)), strict=True))
    return words


def dressed(world: str, application: Application, used: Collection[str], rng: random.Random) -> dict[str, Dress]:
    """The world's tools, those that are not used left out at random, under other names."""
    style, prefix = rng.choice(STYLES), application.name.split()[-1].lower()
    kept = [name for name in VERBS[world] if name in used or rng.random() < 0.6]
    names: dict[str, Dress] = {}
    taken: set[str] = set()
    for name in kept:
        tool = own_tools(world)[name]
        verb = VERBS[world][name]
        new = rng.choice([each for each in verb.names if styled(each, style, prefix) not in taken])
        arguments: dict[str, str] = {}
        for argument in tool.parameters["properties"]:
            free = [each for each in ARGUMENTS[argument] if each not in arguments.values()]
            arguments[argument] = rng.choice(free)
        names[name] = Dress(styled(new, style, prefix), rng.choice(verb.about), arguments)
        taken.add(names[name].name)
    return names


def distractors(
    world: str, taken: Collection[str], count: int, rng: random.Random, real: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Tools of other worlds, in words of their own, and real ones, whose names are not taken."""
    found: dict[str, Mapping[str, Any]] = {}
    for _ in range(count):
        if real and rng.random() < 0.5:
            drawn = rng.choice(real)
        else:
            other = rng.choice([name for name in VERBS if name != world])
            application = rng.choice(domains.of_world(other))
            name = rng.choice(list(VERBS[other]))
            dress = dressed(other, application, [name], rng)[name]
            variant = Variant(words=replaced(application, rng), dresses={name: dress})
            drawn = variant.declared(own_tools(other)[name].declaration).declaration
        if (name := drawn["function"]["name"]) not in taken:
            found[name] = drawn
    return list(found.values())


def prompted(application: Application, parallel: bool, rng: random.Random) -> str:
    """A system prompt: who the agent is, and rules that it keeps."""
    if parallel and rng.random() < 0.2:
        return ""
    rules = rng.sample(RULES, rng.randint(0, 3)) + ([] if parallel else [ONE_CALL])
    return " ".join([rng.choice(ROLES).format(place=application.name), *rules])


@functools.cache
def own_tools(world: str) -> dict[str, Tool]:
    """The tools of a world by name."""
    made = worlds.world(world).make(0)
    if not isinstance(made, Shop | Stateful):
        raise TypeError(f"world {world!r} does not tell its tools")
    return {tool.name: tool for tool in made.tools}
