"""The programs of a recipe as functions with abstract arguments: nothing of the model's size ever exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from posttrain_jax.models.decoder import abstract
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.parallel.placement import Exchange
from posttrain_jax.parallel.rounds import even_rounds
from posttrain_jax.planning.work import DECODE, RL, SFT
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.stages import policy, sft
from posttrain_jax.stages.critic import with_critic
from posttrain_jax.stages.optimizing import make_optimizing
from posttrain_jax.stages.packing import FLOATS, capacity
from posttrain_jax.stages.setup import make_chat, make_engine, make_model
from posttrain_jax.stages.step import abstract_state, layout, make_update


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to be compiled.

    Attributes:
      run: jitted.
      arguments: its abstract arguments, with shardings.
      parts: arguments by what they are ("weights", "optimiser", "cache", "batch"), for the account of memory.
      gradients: trees as large as the gradients it adds up.
      turns: of its outermost loop, whose number is an argument.
      rounds: turns of the loops inside whose number depends on data: exchanges with experts, were routing even.
    """

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    parts: dict[str, Any]
    gradients: Any = None
    turns: int = 1
    rounds: int = 1


def build(recipe: Recipe, name: str, mesh: Mesh) -> Program:
    """The program of that name, as the recipe's stages run it on a mesh."""
    if name in (SFT, RL):
        return _update(recipe, name, mesh)
    return _engine(recipe, name, mesh)


def _update(recipe: Recipe, stage: str, mesh: Mesh) -> Program:
    graph, weights = abstract(make_model(recipe), mesh)
    settings = recipe.sft if stage == SFT else recipe.rl
    updates = recipe.sft.steps if stage == SFT else recipe.rl.steps * recipe.rl.minibatches
    optimizing = make_optimizing(
        settings.optimizer,
        updates,
        recipe.model,
        algorithm=recipe.optimizer,
        router=recipe.router,
        shardings=layout(weights),
        overlap=recipe.precision.overlap,
    )
    objective, reference = recipe.rl.objective, None
    integers, floats = ("tokens", "targets", "positions", "segment_ids"), ("mask",)
    if stage == SFT:
        loss = sft.make_loss(graph, recipe.sft.mtp_weight, optimizing.watch)
        turns = recipe.sft.rows // recipe.sft.microbatch_rows
    else:
        loss = policy.make_loss(graph, recipe.rl, optimizing.watch)
        reference = weights if objective.kl_weight else None
        weights = jax.eval_shape(with_critic, weights) if objective.name == "ppo" else weights
        limit = recipe.rollout.max_prompt + recipe.rollout.max_response
        turns = capacity(recipe.rl, limit, recipe.episodes.segments)
        turns += -(-objective.ptx_rows // recipe.rl.microbatch_rows) if objective.ptx_weight else 0
        floats = (
            *FLOATS,
            *(("fresh",) if recipe.rl.carry_over else ()),
            *(("ptx",) if objective.ptx_weight else ()),
            *(("reference",) if objective.kl_weight else ()),
            *(("sampler_logprobs",) if objective.sampler_cap else ()),
            *(("returns", "old_values") if objective.name == "ppo" else ()),
        )
    state = abstract_state(weights, optimizing.optimizer, mesh, reference, offload=recipe.optimizer.offload)
    shape = (turns, settings.microbatch_rows, settings.length)
    where = meshes.sharding((None, "batch", "length"), shape, mesh)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where) for name in integers}
    batch |= _replayed(recipe, shape, mesh) if stage == RL else {}
    batch |= {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where) for name in floats}
    return Program(
        make_update(optimizing.optimizer, loss, state, optimizing.after, optimizing.overlap),
        (state, batch, _scalar(jnp.int32, mesh)),
        {"weights": (state.weights, state.reference), "optimiser": state.optimizer, "batch": batch},
        gradients=state.weights,
        turns=turns,
        rounds=_rounds(recipe, mesh, settings.microbatch_rows * settings.length),
    )


def _replayed(recipe: Recipe, shape: tuple[int, ...], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The experts of every token, where an update replays them."""
    if not recipe.rl.replay_routing:
        return {}
    shape = *shape, recipe.model.layers, recipe.model.experts_per_token
    where = meshes.sharding((None, "batch", "length", None, None), shape, mesh)
    return {"routing": jax.ShapeDtypeStruct(shape, jnp.int16, sharding=where)}


def _rounds(recipe: Recipe, mesh: Mesh, tokens: int) -> int:
    """Of an exchange of so many tokens with experts over the axis "expert"."""
    if mesh.shape["expert"] == 1:
        return 1
    own = tokens // (mesh.size // mesh.shape["tensor"])
    return even_rounds(own * recipe.model.experts_per_token, Exchange())


def _engine(recipe: Recipe, name: str, mesh: Mesh) -> Program:
    """The engine's own programs."""
    _, weights = abstract(make_model(recipe), mesh)
    engine = make_engine(recipe, make_chat(recipe), mesh=mesh)
    run, arguments = engine.programs(weights, mesh)[name]
    parts: dict[str, Any] = dict(zip(("weights", "cache"), arguments, strict=False))
    return Program(run, arguments, parts, turns=engine.limits.decode_chunk if name == DECODE else 1)


def _scalar(dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), dtype, sharding=meshes.replicated(mesh))
