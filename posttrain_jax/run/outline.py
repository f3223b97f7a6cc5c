"""What a recipe is about to do, in a few lines, computed without any device. Imports no JAX."""

from __future__ import annotations

from posttrain_jax.run import phases
from posttrain_jax.run.phases import Phase
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.run.sizes import checkpoint_bytes


def describe(recipe: Recipe) -> dict[str, str]:
    """What a run is about to do, one short phrase a line."""
    model = recipe.model
    return {
        "recipe": f"{recipe.name}, scale {recipe.scale}, seed {recipe.seed}",
        "model": f"{model.parameters:,} parameters, {model.active_parameters:,} active on a token"
        f" ({model.layers} layers, {model.experts} experts, {model.experts_per_token} on a token)",
        "stages": "; ".join(_told(phase) for phase in phases.of(recipe)),
        "checkpoint": f"about {_size(checkpoint_bytes(recipe))} each, {recipe.run.keep} kept",
    }


def _told(phase: Phase) -> str:
    settings, kind = phase.settings, "" if phase.kind == phase.name else f"{phase.kind}, "
    start = f" from {phase.start}" if phase.start else ""
    work = f"{phase.name}{start}: {kind}{phase.steps} steps of "
    if phase.kind == "rl":
        responses = settings.prompts * settings.group_size
        sampled = responses * phase.recipe.rollout.max_response
        return f"{work}{settings.prompts} x {settings.group_size} responses, up to {sampled:,} sampled tokens"
    taught = f" of what {', '.join(phase.teachers)} answer to {settings.prompts:,} prompts" if phase.teachers else ""
    return f"{work}{settings.rows * settings.length:,} tokens{taught}"


def _size(count: float) -> str:
    """A number of bytes in the unit that reads best."""
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"
