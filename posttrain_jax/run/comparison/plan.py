"""What is compared: the reinforcement learning of each recipe, on one base. Imports no JAX.

A compared run is the recipe's last phases of ``rl``, in order, from the base's weights, with these keys:

==========================  ==========================================================================================
of the base                 the sections of `SHARED`, and of ``rl`` the keys of `ROWS`
of the recipe               ``optimizer``, ``router``, of ``rl`` all other keys (objective and advantages, judge,
                            length, groups and dynamic sampling, updates on a batch, curriculum, temperature, rate),
                            INT4 in training (``precision.qat``) and in rollouts (``rollout.int4``), and the longest
                            response, where it is shorter than the base's
of the comparison           the seed, ``rl.tokens``, dealt to the phases as their steps are, and what `compared` says
==========================  ==========================================================================================

Anything else that a recipe states stays behind: other stages, and a reward model, which one of them would make.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain_jax.errors import UserError
from posttrain_jax.run import phases, rules
from posttrain_jax.run.phases import Phase
from posttrain_jax.run.recipe import Phases, Recipe, Reward, changed, flatten

SHARED = (
    *("family", "variant", "scale", "tokenizer", "model", "precision", "mesh", "tasks", "sft"),
    *("rollout", "episodes", "evaluation", "run"),
)
ROWS = ("prompts", "length", "microbatch_rows", "mismatch_alarm")
OWN = ("optimizer", "router", "rl")
BASE = "base"  # the directory of the run that all others start from


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Recipes on one base.

    Attributes:
      base: what the base model was trained by.
      weights: the directory of its run.
      workdir: where the compared runs go.
      recipes: by the names that the comparison knows them by.
      seeds: of the runs, each recipe with each.
      tokens: that a run may sample and train on; the step that uses them up is its last.
      every: steps between two measures of what is held out.
    """

    base: Recipe
    weights: Path
    workdir: Path
    recipes: Mapping[str, Recipe]
    seeds: Sequence[int]
    tokens: int
    every: int

    def runs(self) -> dict[Path, Recipe]:
        """Every run by its directory: all recipes with the first seed, then with the next. Equal ones are one.

        Raises:
          UserError: a recipe that cannot start from this base, with the key that forbids it.
        """
        problems = [
            f"{name}: config.stages={recipe.stages} has no rl, so there is no reinforcement learning to compare"
            for name, recipe in self.recipes.items()
            if not reinforcement(recipe)
        ]
        if problems:
            raise UserError("\n".join(problems))
        first = {name: self.run(name, self.seeds[0]) for name in self.recipes}
        problems = [
            f"{name} on this base: {problem}"
            for name, run in first.items()
            for _, problem in (*rules.broken(run), *phases.broken(run))
        ]
        if problems:
            raise UserError("\n".join(dict.fromkeys(problems)))
        own = [name for name in self.recipes if name not in self.twins()]
        return {self.folder(name, seed): self.run(name, seed) for seed in self.seeds for name in own}

    def run(self, name: str, seed: int) -> Recipe:
        """The run of a recipe with a seed."""
        return compared(self.base, self.recipes[name], self.weights, seed, self.tokens, self.every)

    def folder(self, name: str, seed: int) -> Path:
        """Where that run is: of a recipe that does here what one before it does, the other one's."""
        return self.workdir / f"{self.twins().get(name, name)}-seed{seed}"

    def twins(self) -> dict[str, str]:
        """Recipe -> the first one before it whose run here would be the same, number by number."""
        first: dict[str, str] = {}
        told = {name: repr(dataclasses.replace(self.run(name, 0), name="")) for name in self.recipes}
        return {name: first[run] for name, run in told.items() if first.setdefault(run, name) != name}

    def fixed(self) -> dict[str, str]:
        """What is the same in every run, a phrase each."""
        base, rl = self.base, self.base.rl
        half = 98 / math.sqrt(base.evaluation.problems)
        when = f"every {self.every} steps and at the end" if self.every else "at the end"
        return {
            "base model": f"{base.name}, scale {base.scale}: {base.model.parameters:,} parameters",
            "chat": " ".join(filter(None, (base.family, base.variant))),
            "tasks": f"{', '.join(base.tasks.names) or 'all'}, levels to {base.tasks.max_level}",
            "held out": f"{base.evaluation.problems} problems, greedy, {when}",
            "chance": f"95 % of it within {half:.1f} points of a run's held-out share",
            "prompts a step": f"{rl.prompts}, up to {base.rollout.max_prompt} + {base.rollout.max_response} tokens",
            "rows": f"{rl.microbatch_rows} of {rl.length} tokens",
            "tokens": f"{self.tokens:,} sampled and trained on in a run, prompts aside",
            "learning rate": "constant after each recipe's warm-up: tokens end a run, and a schedule counts steps",
            "seeds": ", ".join(map(str, self.seeds)),
        }

    def own(self) -> dict[str, dict[str, str]]:
        """The recipes' own keys that are not alike in all of them, with each one's value; a dash where it has none."""
        flat = {name: _own(self.run(name, self.seeds[0])) for name in self.recipes}
        keys = dict.fromkeys(key for values in flat.values() for key in values)
        found = {key: {name: values.get(key, "–") for name, values in flat.items()} for key in keys}
        return {key: values for key, values in found.items() if len(set(values.values())) > 1}

    def behind(self) -> dict[str, list[str]]:
        """What each recipe states that does not count here: other stages, and sections unlike the base's."""
        found = {}
        for name, recipe in self.recipes.items():
            taken = reinforcement(recipe)
            names = {phase.name for phase in taken}
            stages = [phase.name for phase in phases.of(recipe) if phase.name not in names and phase.kind != "sft"]
            told = [_shared(each) for each in (recipe, *(phase.recipe for phase in taken))]
            own = _shared(self.base)
            sections = [key for key in own if any(each[key] != own[key] for each in told)]
            found[name] = [*(f"stage {stage}" for stage in stages), *sections]
        return found


def reinforcement(recipe: Recipe) -> tuple[Phase, ...]:
    """The phases of ``rl`` that end a recipe's learning, each from where the one before it ended; the last ones."""
    found: list[Phase] = []
    for phase in reversed(phases.of(recipe)):
        if phase.kind == "rl" and phase.steps:
            found.insert(0, phase)
            if phase.start:
                break
        elif found:
            break
    return tuple(found)


def compared(base: Recipe, recipe: Recipe, weights: Path, seed: int, tokens: int, every: int = 0) -> Recipe:
    """The run of a recipe's reinforcement learning on a base.

    Its steps are a bound that is never met: a response has a token at least. The learning rate is constant after the
    warm-up, verifiers and judges alone reward, and steps are neither recorded nor replayed.
    """
    own = reinforcement(recipe)
    steps = sum(phase.steps for phase in own)
    rows = {name: getattr(base.rl, name) for name in ROWS}
    told: dict[str, dict[str, Any]] = {}
    done = 0
    for phase in own:
        before, done = done, done + phase.steps
        rl, rollout = phase.recipe.rl, phase.recipe.rollout
        budget = tokens * done // steps - tokens * before // steps
        rl = dataclasses.replace(
            rl,
            **rows,
            steps=-(-budget // (base.rl.prompts * rl.group_size)),
            tokens=budget,
            reward=Reward(),
            debug="none",
            rollouts="",
            optimizer=dataclasses.replace(rl.optimizer, schedule="constant"),
        )
        told[phase.name] = {
            "kind": "rl",
            "optimizer": dataclasses.asdict(phase.recipe.optimizer),
            "router": dataclasses.asdict(phase.recipe.router),
            "rollout": {"max_response": min(rollout.max_response, base.rollout.max_response), "int4": rollout.int4},
            "rl": dataclasses.asdict(rl),
        }
    last = own[-1].recipe
    shared = {name: getattr(base, name) for name in SHARED}
    shared["evaluation"] = dataclasses.replace(base.evaluation, every=every)
    shared["precision"] = dataclasses.replace(base.precision, qat=last.precision.qat)
    shared["rollout"] = dataclasses.replace(base.rollout, int4=last.rollout.int4)
    plain = Recipe(name=recipe.name, seed=seed, weights=str(weights), **shared)
    plain = changed(plain, {key: told[own[-1].name][key] for key in OWN})
    return dataclasses.replace(plain, stages=tuple(told), phases=Phases(told))


def base_run(recipe: Recipe) -> Recipe:
    """The run that makes the base: the recipe's first supervised fine-tuning alone.

    Raises:
      UserError: it has none.
    """
    first = next((phase.recipe for phase in phases.of(recipe) if phase.kind == "sft"), None)
    if first is None:
        raise UserError(f"{recipe.name}: config.stages={recipe.stages} has no sft to make a base of; give --base=DIR")
    values = {name: getattr(first, name) for name in (*SHARED, *OWN, "name", "weights")}
    return Recipe(stages=("sft",), seed=recipe.seed, **values)


def default_tokens(recipe: Recipe) -> int:
    """What the recipe's own steps of ``rl`` sample at most; 0 where it has none."""
    return recipe.rl.steps * recipe.rl.prompts * recipe.rl.group_size * recipe.rollout.max_response


def _shared(recipe: Recipe) -> dict[str, Any]:
    """The sections that a compared run takes from the base, without the keys that are its own."""
    found = {key: getattr(recipe, key) for key in SHARED if key != "run"}
    found["precision"] = dataclasses.replace(recipe.precision, qat="none")
    found["rollout"] = dataclasses.replace(recipe.rollout, int4=False, max_response=1)
    return found


def _own(recipe: Recipe) -> dict[str, Any]:
    """A compared run's own keys; what its phases do not share from the first to the last, with arrows between."""
    told = [_keys(phase.recipe) for phase in phases.of(recipe)]
    found = {}
    for key in dict.fromkeys(key for keys in told for key in keys):
        values = [str(keys[key]) for keys in told if key in keys]
        found[key] = " → ".join(values) if len(set(values)) > 1 else values[0]
    return found


def _keys(recipe: Recipe) -> dict[str, Any]:
    """The own keys of a phase; of the objectives' sections that of its own alone."""
    tree = dataclasses.asdict(recipe)
    objective, used = "rl.objective.", recipe.rl.objective.name
    return {
        key: value
        for key, value in flatten({name: tree[name] for name in OWN}).items()
        if key not in ("rl.steps", "rl.tokens")
        and (not key.startswith(objective) or key.count(".") == 2 or key.startswith(f"{objective}{used}."))
    } | {
        "rollout.max_response": recipe.rollout.max_response,
        "rollout.int4": recipe.rollout.int4,
        "precision.qat": recipe.precision.qat,
    }
