"""What a recipe's reinforcement learning is made of: one phrase a component, and the curves that show what it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from posttrain_jax.objectives.defaults import DEFAULTS
from posttrain_jax.run import phases
from posttrain_jax.run.recipe import Recipe


class Component(NamedTuple):
    """A part of a recipe.

    Attributes:
      told: what it is in a recipe of one phase, as a phrase.
      metrics: of metrics.jsonl, which show what it does.
    """

    title: str
    told: Callable[[Recipe], str]
    metrics: tuple[str, ...] = ()


def phrases(recipe: Recipe) -> dict[str, str]:
    """Every component of a compared run, with arrows where its phases differ."""
    told = [phase.recipe for phase in phases.of(recipe)]
    return {name: " → ".join(dict.fromkeys(map(each.told, told))) for name, each in COMPONENTS.items()}


def alike(told: Mapping[str, str]) -> dict[str, str]:
    """Recipe -> the first recipe before it of which the same is told; those that differ from all are left out."""
    first: dict[str, str] = {}
    return {name: first[phrase] for name, phrase in told.items() if first.setdefault(phrase, name) != name}


def _objective(recipe: Recipe) -> str:
    objective = recipe.rl.objective
    settings: Any = getattr(objective, objective.name, None)
    numbers = dataclasses.asdict(settings) if settings else {}
    told = ", ".join(f"{key} {value:g}" for key, value in numbers.items() if value)
    return f"{objective.name} ({told})" if told else objective.name


def _advantages(recipe: Recipe) -> str:
    objective = recipe.rl.objective
    own = DEFAULTS[objective.name]
    return f"{objective.advantages or own.advantages}, {objective.aggregation or own.aggregation}"


def _ties(recipe: Recipe) -> str:
    objective = recipe.rl.objective
    told = {
        "KL to the start": objective.kl_weight,
        "SFT data beside (PTX)": objective.ptx_weight,
        "cap of the sampler's ratio": objective.sampler_cap,
        "drift mask": objective.drift_mask,
    }
    routing = ["replayed routing"] * recipe.rl.replay_routing
    return ", ".join([*(f"{name} {value:g}" for name, value in told.items() if value), *routing]) or "none"


def _optimizer(recipe: Recipe) -> str:
    own, pace = recipe.optimizer, recipe.rl.optimizer
    moments = f"betas {own.beta1:g}/{own.beta2:g}, epsilon {own.epsilon:g}"
    matrices = f"momentum {own.momentum:g}, {own.newton_schulz_steps} iterations, updates of {own.update_rms:g}"
    clip = f", QK-Clip at {own.qk_clip_threshold:g}" if own.name == "muonclip" else ""
    return f"{own.name}: {moments if own.name == 'adamw' else matrices}{clip}; rate {pace.learning_rate:g}"


def _updates(recipe: Recipe) -> str:
    rl = recipe.rl
    late = f", {rl.carry_over} steps late at most" if rl.carry_over else ""
    return f"{rl.group_size} responses to a prompt, {rl.minibatches} updates, up to {rl.max_rounds} rounds{late}"


def _length(recipe: Recipe) -> str:
    rl = recipe.rl
    told = [f"up to {recipe.rollout.max_response} tokens"]
    told += [f"penalty to {rl.overlong_penalty:g} in the last {rl.overlong_buffer}"] * (rl.overlong_penalty > 0)
    told += [f"reward of short answers {rl.length_reward:g}"] * (rl.length_reward > 0)
    told += [f"budgets {', '.join(rl.budgets)}, penalty {rl.budget_penalty:g}"] * bool(rl.budgets)
    told += [f"stop after {rl.repetition_window} repeated"] * (rl.repetition_window > 0)
    return "; ".join(told)


def _sampling(recipe: Recipe) -> str:
    """The temperature, and whatever else a recipe says of how tokens are drawn."""
    told = dataclasses.asdict(recipe.rl.sampling)
    plain = dataclasses.asdict(type(recipe.rl.sampling)())
    others = [f"{key} {value}" for key, value in told.items() if key != "temperature" and value != plain[key]]
    return ", ".join([f"temperature {recipe.rl.sampling.temperature:g}", *others])


def _curriculum(recipe: Recipe) -> str:
    rl = recipe.rl
    asked = {"variance": "by p(1 − p)", "failure": "by 1 − p", "uniform": "all alike"}[rl.effort]
    retired = f", retired at {rl.retire_at:g}" if rl.retire_at < 1 else ""
    return f"asked {asked} of the pass rate p, a level up at {rl.promote_at:g}{retired}"


def _judge(recipe: Recipe) -> str:
    judge = recipe.rl.judge
    verifier = f"verifier, {recipe.rl.format_reward:g} for form"
    return verifier if judge.name == "none" else f"{verifier}; {judge.name}, weight {judge.weight:g}"


def _quantization(recipe: Recipe) -> str:
    told = ["INT4 experts in training"] * (recipe.precision.qat == "int4")
    told += ["in rollouts"] * recipe.rollout.int4
    return ", ".join(told) or "none"


COMPONENTS = {
    "objective": Component("Objective", _objective, ("reward", "pass_rate")),
    "advantages": Component("Advantages, and from tokens to a loss", _advantages),
    "ties": Component("What ties it down", _ties, ("kl", "clipped")),
    "optimizer": Component("Optimizer", _optimizer, ("grad_norm",)),
    "updates": Component("Groups and updates", _updates, ("rounds",)),
    "length": Component("Length", _length, ("response_length", "cut_off")),
    "sampling": Component("Sampling", _sampling, ("entropy",)),
    "curriculum": Component("Curriculum", _curriculum, ("level",)),
    "rewards": Component("Rewards", _judge, ("well_formed",)),
    "quantization": Component("Quantisation", _quantization, ("mismatch",)),
}
METRICS = ("heldout", *(metric for component in COMPONENTS.values() for metric in component.metrics))
