"""The programs of a recipe as functions with abstract arguments: nothing of the model's size ever exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from posttrain_jax.models.decoder import Decoder, abstract, unstack
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.parallel import placement
from posttrain_jax.planning.work import RL, SFT
from posttrain_jax.rollout import decode
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.stages import policy, sft
from posttrain_jax.stages.critic import with_critic
from posttrain_jax.stages.optimizing import make_optimizing
from posttrain_jax.stages.packing import FLOATS, capacity
from posttrain_jax.stages.setup import make_model
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
    """

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    parts: dict[str, Any]
    gradients: Any = None
    turns: int = 1


def build(recipe: Recipe, name: str, mesh: Mesh) -> Program:
    """The program of that name, as the recipe's stages run it on a mesh."""
    if name in (SFT, RL):
        return _update(recipe, name, mesh)
    return {"prefill": _prefill, "decode": _decode, "transfer": _transfer}[name](recipe, mesh)


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
        turns = capacity(recipe.rl, limit)
        floats = (
            *FLOATS,
            *(("ptx",) if objective.ptx_weight else ()),
            *(("reference",) if objective.kl_weight else ()),
            *(("sampler_logprobs",) if objective.sampler_cap else ()),
            *(("returns", "old_values") if objective.name == "ppo" else ()),
        )
    state = abstract_state(weights, optimizing.optimizer, mesh, reference)
    shape = (turns, settings.microbatch_rows, settings.length)
    where = meshes.sharding((None, "batch", "length"), shape, mesh)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where) for name in integers}
    batch |= {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where) for name in floats}
    return Program(
        make_update(optimizing.optimizer, loss, state, optimizing.after),
        (state, batch, _scalar(jnp.int32, mesh)),
        {"weights": (state.weights, state.reference), "optimiser": state.optimizer, "batch": batch},
        gradients=state.weights,
        turns=turns,
    )


def _transfer(recipe: Recipe, mesh: Mesh) -> Program:
    """A trainer's weights, laid out and rounded as the sampler decodes with them."""
    _, weights = abstract(make_model(recipe), mesh)
    _, sampler = _sampler(recipe, mesh)

    def load(weights):
        apart = {tuple(map(str, path)): leaf for path, leaf in unstack(weights, recipe.model).flat_state()}
        placed = [(path, old.replace(_rounded(apart[*map(str, path)], old))) for path, old in sampler.flat_state()]
        return nnx.State.from_flat_path(placed)

    run = jax.jit(load, out_shardings=layout(sampler))
    return Program(run, (weights,), {"weights": weights})


def _rounded(new: Any, old: Any) -> Any:
    return new.get_value().astype(old.get_value().dtype)


def _decode(recipe: Recipe, mesh: Mesh) -> Program:
    graph, weights = _sampler(recipe, mesh)
    limits = _limits(recipe)
    slots = _slots(recipe, graph, weights, limits, mesh)

    @partial(jax.jit, donate_argnums=1, out_shardings=layout(slots))
    @placement.on(mesh, meshes.SAMPLE)
    def run(weights, slots, temperature):
        return decode.decode(nnx.merge(graph, weights), slots, temperature, limits)

    arguments = weights, slots, _scalar(jnp.float32, mesh)
    return Program(run, arguments, {"weights": weights, "cache": slots}, turns=limits.decode_chunk)


def _prefill(recipe: Recipe, mesh: Mesh) -> Program:
    graph, weights = _sampler(recipe, mesh)
    limits = _limits(recipe)
    slots = _slots(recipe, graph, weights, limits, mesh)

    @partial(jax.jit, donate_argnums=1, out_shardings=layout(slots))
    @placement.on(mesh, meshes.SAMPLE)
    def run(weights, slots, *prompts):
        return decode.admit(nnx.merge(graph, weights), slots, *prompts)

    rows = limits.prefill_batch
    prompts = _array((rows, limits.max_prompt), jnp.int32, ("batch", None), mesh)
    lengths = _array((rows,), jnp.int32, ("batch",), mesh)
    row_of_slot = _array((limits.slots,), jnp.int32, ("batch",), mesh)
    arguments = weights, slots, prompts, lengths, row_of_slot, slots.rng
    return Program(run, arguments, {"weights": weights, "cache": slots})


def _sampler(recipe: Recipe, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    """The model as the sampler holds it: layers apart, in the compute format but for head, biases and router."""
    compute = recipe.precision.compute
    graph, shapes = nnx.split(
        nnx.eval_shape(
            lambda: Decoder(recipe.model, rngs=nnx.Rngs(0), param_dtype=compute, compute_dtype=compute, scan=False)
        )
    )

    def place(path: Any, variable: nnx.Variable) -> nnx.Variable:
        leaf = variable.get_value()
        exact = any(name in str(key) for key in path for name in ("router", "bias", "head"))
        dtype = jnp.dtype(recipe.precision.params) if exact else leaf.dtype
        where = meshes.sharding(variable.logical_axes, leaf.shape, mesh, meshes.SAMPLE)
        return variable.replace(jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where))

    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return graph, jax.tree_util.tree_map_with_path(place, shapes, is_leaf=is_variable)


def _limits(recipe: Recipe) -> Limits:
    rollout, rl = recipe.rollout, recipe.rl
    return Limits(
        slots=rollout.slots,
        max_prompt=rollout.max_prompt,
        max_response=rollout.max_response,
        decode_chunk=rollout.decode_chunk,
        prefill_batch=rollout.prefill_batch,
        stop_tokens=(0,),
        top_p=rl.sampling.top_p,
        top_k=rl.sampling.top_k,
        repetition_window=rl.repetition_window,
        repetition_probability=rl.repetition_probability,
    )


def _slots(recipe: Recipe, graph: nnx.GraphDef, weights: nnx.State, limits: Limits, mesh: Mesh) -> Any:
    """The state of every slot; sequences are split as batches are, keys and values by their heads too."""
    shapes = jax.eval_shape(lambda w: decode.empty(nnx.merge(graph, w), limits), weights)
    heads = recipe.model.kv_heads

    def place(leaf):
        by_head = leaf.ndim == 4 and leaf.shape[1] == heads
        axes = ("batch", "kv_heads") if by_head else ("batch",)
        return _array(leaf.shape, leaf.dtype, (*axes, *(None,) * (leaf.ndim - len(axes))), mesh)

    return jax.tree.map(place, shapes)


def _array(shape: tuple[int, ...], dtype: Any, axes: tuple[str | None, ...], mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.sharding(axes, shape, mesh, meshes.SAMPLE))


def _scalar(dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), dtype, sharding=meshes.replicated(mesh))
