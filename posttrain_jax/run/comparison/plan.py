"""What is compared: the reinforcement learning of each recipe, on one base. Imports no JAX.

A compared run is ``rl`` alone, from the base's weights, with these keys:

==========================  ==========================================================================================
of the base                 the sections of `SHARED`, and of ``rl`` the keys of `ROWS`
of the recipe               ``optimizer``, ``router``, and of ``rl`` all other keys: objective and advantages, rewards,
                            length, groups and dynamic sampling, updates on a batch, curriculum, temperature, rate
of the comparison           the seed, ``rl.tokens``, and what `compared` says
==========================  ==========================================================================================

Anything else that a recipe states stays behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain_jax.errors import UserError
from posttrain_jax.run import rules
from posttrain_jax.run.recipe import Recipe, flatten

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
      recipes: by the names that the comparison knows them by.
      seeds: of the runs, each recipe with each.
      tokens: that a run may sample and train on; the step that uses them up is its last.
      every: steps between two measures of what is held out.
    """

    base: Recipe
    weights: Path
    recipes: Mapping[str, Recipe]
    seeds: Sequence[int]
    tokens: int
    every: int

    def runs(self) -> dict[tuple[str, int], Recipe]:
        """Every run by recipe and seed: all recipes with the first seed, then with the next.

        Raises:
          UserError: a recipe that cannot start from this base, with the key that forbids it.
        """
        found = {(name, seed): self._run(name, seed) for seed in self.seeds for name in self.recipes}
        problems = dict.fromkeys(
            f"{name} on this base: {problem}"
            for (name, _), recipe in found.items()
            for _, problem in rules.broken(recipe)
        )
        for name, recipe in self.recipes.items():
            if not recipe.rl.steps:
                problems[f"{name}: config.rl.steps=0, so there is no reinforcement learning to compare"] = None
        if problems:
            raise UserError("\n".join(problems))
        return found

    def _run(self, name: str, seed: int) -> Recipe:
        return compared(self.base, self.recipes[name], self.weights, seed, self.tokens, self.every)

    def fixed(self) -> dict[str, str]:
        """What is the same in every run, a phrase each."""
        base, rl = self.base, self.base.rl
        return {
            "base model": f"{base.name}, scale {base.scale}: {base.model.parameters:,} parameters",
            "chat": " ".join(filter(None, (base.family, base.variant))),
            "tasks": f"{', '.join(base.tasks.names) or 'all'}, levels to {base.tasks.max_level}",
            "held out": f"{base.evaluation.problems} problems, greedy, every {self.every} steps and at the end"
            if self.every
            else f"{base.evaluation.problems} problems, greedy, at the end",
            "prompts a step": f"{rl.prompts}, up to {base.rollout.max_prompt} + {base.rollout.max_response} tokens",
            "rows": f"{rl.microbatch_rows} of {rl.length} tokens",
            "tokens": f"{self.tokens:,} sampled and trained on in a run, prompts aside",
            "learning rate": "constant after each recipe's warm-up: tokens end a run, and a schedule counts steps",
            "seeds": ", ".join(map(str, self.seeds)),
        }

    def own(self) -> dict[str, dict[str, Any]]:
        """The recipes' own keys that are not alike in all of them, with each one's value."""
        flat = {name: _own(self._run(name, self.seeds[0])) for name in self.recipes}
        keys = dict.fromkeys(key for values in flat.values() for key in values)
        found = {key: {name: values.get(key) for name, values in flat.items()} for key in keys}
        return {key: values for key, values in found.items() if len(set(map(repr, values.values()))) > 1}

    def behind(self) -> dict[str, list[str]]:
        """The sections in which each recipe states something else than the base, which does not count here."""
        found = {}
        for name, recipe in self.recipes.items():
            fields = [field.name for field in dataclasses.fields(Recipe)]
            other = [key for key in fields if key not in (*OWN, "name", "seed", "weights", "run")]
            found[name] = [key for key in other if getattr(recipe, key) != getattr(self.base, key)]
        return found


def compared(base: Recipe, recipe: Recipe, weights: Path, seed: int, tokens: int, every: int = 0) -> Recipe:
    """The run of a recipe's reinforcement learning on a base.

    Its steps are a bound that is never met: a response has a token at least. The learning rate is constant after the
    warm-up, and steps are neither recorded nor replayed.
    """
    rows = {name: getattr(base.rl, name) for name in ROWS}
    least = base.rl.prompts * recipe.rl.group_size
    rl = dataclasses.replace(
        recipe.rl,
        **rows,
        steps=-(-tokens // least),
        tokens=tokens,
        debug="none",
        rollouts="",
        optimizer=dataclasses.replace(recipe.rl.optimizer, schedule="constant"),
    )
    shared = {name: getattr(base, name) for name in SHARED}
    shared["evaluation"] = dataclasses.replace(base.evaluation, every=every)
    return Recipe(
        name=recipe.name,
        seed=seed,
        stages=("rl",),
        weights=str(weights),
        optimizer=recipe.optimizer,
        router=recipe.router,
        rl=rl,
        **shared,
    )


def base_run(recipe: Recipe) -> Recipe:
    """The run that makes the base: the recipe's supervised fine-tuning alone."""
    values = {name: getattr(recipe, name) for name in (*SHARED, *OWN, "name", "seed", "weights")}
    return Recipe(stages=("sft",), **values)


def default_tokens(recipe: Recipe) -> int:
    """What the recipe's own steps sample at most; 0 where it has none."""
    return recipe.rl.steps * recipe.rl.prompts * recipe.rl.group_size * recipe.rollout.max_response


def _own(recipe: Recipe) -> dict[str, Any]:
    """A compared run's own keys; of the objectives' sections that of its own alone."""
    tree = dataclasses.asdict(recipe)
    flat = flatten({name: tree[name] for name in OWN})
    objective, used = "rl.objective.", recipe.rl.objective.name
    return {
        key: value
        for key, value in flat.items()
        if key not in ("rl.steps", "rl.tokens")
        and (not key.startswith(objective) or key.count(".") == 2 or key.startswith(f"{objective}{used}."))
    }
