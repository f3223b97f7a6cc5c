"""A recipe's stages one by one: the kind of each, the weights it starts from, and the settings that are its own.

``recipe.phases`` names stages that differ from what the recipe says of their kind::

    stages = ("sft", "reasoning", "agent", "distill")
    phases = {
        "reasoning": {"kind": "rl", "start": "sft", "tasks": {"names": ("gcd", "products")}},
        "agent": {"kind": "rl", "start": "sft", "tasks": {"names": ("shop",)}, "rl": {"steps": 40}},
        "distill": {"start": "sft", "distill": {"teachers": ("reasoning", "agent")}},
    }

A stage that is no phase is its kind, with the recipe's settings. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import xxhash

from posttrain_jax.run import rules
from posttrain_jax.run.nearest import nearest
from posttrain_jax.run.recipe import Phases, Recipe, changed

SECTIONS = ("optimizer", "router", "tasks", "sft", "reward_model", "dpo", "distill", "rollout", "rl", "episodes")
BASE = "base"  # the weights that the run begins with, as a start
RESERVED = (BASE, "heldout", "heldout_pairs")  # other names in metrics.jsonl and summary.json


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stage of a recipe.

    Attributes:
      start: whose final weights it begins with: an earlier phase's, or `BASE`; empty: those of the phase before.
      recipe: what the phase does, as if it were a run of its own.
    """

    name: str
    kind: str
    start: str
    recipe: Recipe

    @property
    def settings(self) -> Any:
        """The section of its kind."""
        return getattr(self.recipe, self.kind)

    @property
    def steps(self) -> int:
        """Of its loop."""
        return self.settings.steps

    @property
    def teachers(self) -> tuple[str, ...]:
        """The phases whose answers it learns from."""
        return self.recipe.distill.teachers if self.kind == "distill" else ()


def of(recipe: Recipe) -> tuple[Phase, ...]:
    """The phases in order. A named one has a seed of its own, so that two of a kind ask and sample differently."""
    found = []
    for i, (name, kind) in enumerate(zip(recipe.stages, recipe.kinds, strict=True)):
        given, own = recipe.phases.get(name), recipe
        if given is not None:
            seed = xxhash.xxh32_intdigest(f"{recipe.seed}/{name}".encode())
            own = changed(recipe, {"seed": seed, **{key: given[key] for key in SECTIONS if key in given}})
        before = dict.fromkeys(each for each in recipe.kinds[:i] if each != kind)
        own = dataclasses.replace(own, stages=(*before, kind), phases=Phases())
        found.append(Phase(name, kind, (given or {}).get("start", ""), own))
    return tuple(found)


def asked_for(phases: tuple[Phase, ...]) -> set[str]:
    """The phases whose final weights a later one begins with, or is taught by."""
    return {name for phase in phases for name in (phase.start, *phase.teachers)} - {"", BASE}


def broken(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with the phases, as `rules.broken` has it: names, kinds, starts, teachers, each one's recipe."""
    for name, given in recipe.phases.items():
        if not name.isidentifier() or name in RESERVED:
            why = "has a meaning of its own" if name in RESERVED else "no name; letters, digits and _ make one"
            yield ("phases",), f"config.phases: {name!r} {why}; the nearest is {_better(name)!r}"
        if given.get("kind", name) not in rules.STAGES:
            yield (
                (f"phases.{name}",),
                f"config.phases.{name}: has no kind; set config.phases.{name}.kind to one of {', '.join(rules.STAGES)}",
            )
    if any(kind not in rules.STAGES for kind in recipe.kinds):
        return
    told = {problem for _, problem in rules.broken(recipe)}
    earlier: list[Phase] = []
    for phase in of(recipe):
        here = f"phases.{phase.name}"
        names = [each.name for each in earlier]
        if phase.start and phase.start not in (BASE, *names):
            yield (f"{here}.start", "stages"), f"config.{here}.start={phase.start!r}: {_no_phase(phase.start, names)}"
        if phase.kind == "distill":
            yield from _teachers(phase, [each.name for each in earlier if each.kind != "reward_model"])
        if phase.name in recipe.phases:
            for keys, problem in rules.broken(phase.recipe):
                if problem not in told:
                    yield (here, *keys), f"config.{here}: {problem}"
        earlier.append(phase)


def _teachers(phase: Phase, known: list[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    key = "distill.teachers"
    if not phase.teachers:
        good = f"; the nearest is {known[-1]!r}" if known else ""
        yield (key, f"phases.{phase.name}"), f"config.{key}=(): {phase.name!r} learns from earlier phases{good}"
    for name in dict.fromkeys(phase.teachers):
        if name not in known:
            yield (key, f"phases.{phase.name}", "stages"), f"config.{key}: {_no_phase(name, known)}"
        if phase.teachers.count(name) > 1:
            yield (key, f"phases.{phase.name}"), f"config.{key}: {name!r} is named {phase.teachers.count(name)} times"


def _no_phase(name: str, known: list[str]) -> str:
    if not known:
        return f"no phase comes before that could be {name!r}; the nearest is {BASE!r}"
    return f"no {name!r} comes before; the nearest is {nearest(name, known)!r} (all: {', '.join(known)})"


def _better(name: str) -> str:
    plain = "".join(c if c.isidentifier() or c.isdigit() else "_" for c in name)
    return plain if plain.isidentifier() and plain not in RESERVED else f"phase_{plain}"
