"""What a stage hands out after every step, and the compiled update that every stage shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.parallel import placement
from posttrain_jax.parallel.overlap import compiler_options

Batch = dict[str, Array]
MAX_LOGITS = "max_logits"  # a loss's metric for QK-Clip: the largest of all microbatches counts, not the sum
HOST = "pinned_host"  # JAX's name of memory that devices copy from and to by themselves
# (weights, microbatch, total) -> (loss, metrics): each already divided by total, so microbatches add up
Loss = Callable[[nnx.State, Batch, Float[Array, ""]], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything an update reads and writes."""

    weights: nnx.State
    optimizer: Any
    bad_in_a_row: Int[Array, ""]
    skipped: Int[Array, ""]
    reference: nnx.State | None = None  # weights that stay as they were
    reward: nnx.State | None = None  # a trained reward model, carried along


@dataclasses.dataclass
class Step:
    """One finished step of a stage.

    Attributes:
      number: steps done in this stage, from 1.
      state: the training state after the step.
      metrics: numbers that a resumed run repeats bit for bit (device scalars allowed).
      tokens: tokens trained on or sampled, for the throughput.
      cursor: what the stage needs to go on from here, JSON-able.
      samples: trajectories worth keeping.
      batch: what the step trained on, for a dump if it went wrong.
      last: whether the stage ends here, before all of its steps.
    """

    number: int
    state: TrainState
    metrics: dict[str, Any]
    tokens: int
    cursor: dict[str, Any]
    samples: list[dict] = dataclasses.field(default_factory=list)
    batch: Batch | None = None
    last: bool = False


def fresh_state(
    weights: nnx.State,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    reference: nnx.State | None = None,
    reward: nnx.State | None = None,
    offload: bool = False,
) -> TrainState:
    """A state whose optimiser has seen nothing; its moments lie as their weights lie, with ``offload`` on the hosts."""
    where = layout(abstract_state(weights, optimizer, mesh, reference, reward, offload))
    return jax.jit(partial(_fresh, optimizer), out_shardings=where)(weights, reference, reward)


def layout(tree: Any) -> Any:
    """Where each array of a tree lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _fresh(
    optimizer: optax.GradientTransformation, weights: nnx.State, reference: nnx.State | None, reward: nnx.State | None
) -> TrainState:
    return TrainState(weights, optimizer.init(weights), jnp.int32(0), jnp.int32(0), reference, reward)


def abstract_state(
    weights: nnx.State,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    reference: nnx.State | None = None,
    reward: nnx.State | None = None,
    offload: bool = False,
) -> TrainState:
    """`fresh_state` as shapes with shardings; ``weights`` may be abstract too."""

    def place(leaf):
        if isinstance(leaf, nnx.Variable):
            value = leaf.get_value()
            if not hasattr(value, "shape"):  # optax's mark for a weight that is another optimizer's
                return leaf
            where = meshes.sharding(leaf.logical_axes, value.shape, mesh)
            return leaf.replace(jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=where))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=meshes.replicated(mesh))

    def is_variable(x):
        return isinstance(x, nnx.Variable)

    shapes = jax.eval_shape(partial(_fresh, optimizer), weights, reference, reward)
    state = jax.tree.map(place, shapes, is_leaf=is_variable)
    if offload:
        state.optimizer = jax.tree.map(_on_hosts, state.optimizer)
    return state


def _on_hosts(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if not leaf.shape:  # counts of updates are no burden
        return leaf
    return leaf.update(sharding=leaf.sharding.with_memory_kind(HOST))


def make_update(
    optimizer: optax.GradientTransformation,
    loss: Loss,
    state: TrainState,
    after: Callable[[nnx.State, dict[str, Any]], tuple[nnx.State, dict[str, Any]]] = lambda *unchanged: unchanged,
    overlap: bool = False,
) -> Callable[[TrainState, Batch, Int[Array, ""] | int], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """The compiled optimiser step ``update(state, batch, microbatches)``, whose states lie where ``state`` lies.

    ``batch`` is a tree of ``[capacity, rows, length]`` arrays, of which the first ``microbatches`` are filled; their
    gradients are added up before the update. The count is an argument, not a shape, so a fuller or emptier batch
    never compiles again. A step whose loss or gradient is not finite leaves weights and optimiser as they were and is
    counted in the state. ``after`` has the last word on the new weights and on what the metrics tell.
    With ``overlap`` collectives run inside kernels where there are TPUs (`parallel.overlap`).
    """
    optimizer = optax.with_extra_args_support(optimizer)
    mesh = getattr(jax.tree.leaves(layout(state))[0], "mesh", None)
    places = layout(state.optimizer)
    options = compiler_options(mesh) if overlap else {}

    @partial(jax.jit, donate_argnums=0, out_shardings=(layout(state), None), compiler_options=options)
    @placement.on(mesh)
    def update(state: TrainState, batch: Batch, microbatches):
        total = jnp.maximum(batch["mask"].sum(), 1.0)
        gradient = jax.value_and_grad(loss, has_aux=True)

        def cut(index):
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), batch)

        def run(microbatch):
            (value, metrics), grads = gradient(state.weights, microbatch, total)
            return grads, {"loss": value, **metrics}

        def add(index, carry):
            done, microbatch = carry
            return _gather(done, run(microbatch)), cut(index + 1)

        # The microbatch is carried, not cut where it is used: XLA would cut anew inside every fused loop that reads it.
        grads, metrics = jax.lax.fori_loop(0, microbatches, add, (_nothing(jax.eval_shape(run, cut(0))), cut(0)))[0]

        norm = optax.global_norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        extra = {MAX_LOGITS: metrics[MAX_LOGITS]} if MAX_LOGITS in metrics else {}
        before = jax.tree.map(_fetched, state.optimizer, places)
        changes, moments = optimizer.update(grads, before, state.weights, **extra)
        weights, metrics = after(cast(nnx.State, optax.apply_updates(state.weights, changes)), metrics)
        state = TrainState(
            weights=_choose(finite, weights, state.weights),
            optimizer=_choose(finite, moments, before),
            bad_in_a_row=jnp.where(finite, 0, state.bad_in_a_row + 1),
            skipped=state.skipped + ~finite,
            reference=state.reference,
            reward=state.reward,
        )
        counts = {"skipped": state.skipped, "bad_in_a_row": state.bad_in_a_row}
        return state, {**metrics, "grad_norm": norm, "tokens": total, **counts}

    return update


def _fetched(moment: Array, where: Any) -> Array:
    return jax.device_put(moment, where.with_memory_kind("device")) if where.memory_kind == HOST else moment


def _nothing(like):
    grads, metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    if MAX_LOGITS in metrics:
        metrics[MAX_LOGITS] = jax.tree.map(lambda x: jnp.full_like(x, -jnp.inf), metrics[MAX_LOGITS])
    return grads, metrics


def _gather(done, new):
    (grads, metrics), (more_grads, more) = done, new
    combine = {MAX_LOGITS: jnp.maximum}
    told = {name: jax.tree.map(combine.get(name, jnp.add), metrics[name], more[name]) for name in metrics}
    return jax.tree.map(jnp.add, grads, more_grads), told


def _choose(finite: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
