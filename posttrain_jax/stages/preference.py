"""Direct preference optimisation: the policy against the weights it began with, on pairs of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from posttrain_jax.data.pairs import most_pairs
from posttrain_jax.data.pipeline import Batches
from posttrain_jax.objectives.preference import dpo
from posttrain_jax.objectives.sequences import pair_sums
from posttrain_jax.parallel import placement
from posttrain_jax.parallel.logprobs import token_logprobs
from posttrain_jax.run.recipe import DPO
from posttrain_jax.stages.observing import NOTHING, Watch, watched_trunk
from posttrain_jax.stages.optimizing import Optimizing
from posttrain_jax.stages.step import Batch, Loss, Step, TrainState
from posttrain_jax.stages.supervised import learn


def make_loss(graph: nnx.GraphDef, settings: DPO, watch: Watch = NOTHING) -> Loss:
    """The loss of the pairs in a microbatch of `data.pairs.lay_pairs`, over all pairs of the batch.

    ``reference`` holds the log-probabilities of the reference (`make_look_back`). A response's log-probability is
    the sum over its tokens, for ``ipo`` the mean.
    """

    def of_answers(logprobs, batch):
        ids, most = batch["segment_ids"], most_pairs(batch["mask"].shape[1])
        sums = pair_sums(batch["answer"] * logprobs, ids, most)
        if settings.kind == "ipo":
            sizes = pair_sums(batch["answer"], ids, most)
            sums = [total / jnp.maximum(size, 1.0) for total, size in zip(sums, sizes, strict=True)]
        return [x.ravel() for x in sums]

    def loss(weights: nnx.State, batch: Batch, total):
        model = nnx.merge(graph, weights)
        trunk, balance, metrics = watched_trunk(model, batch, total, watch)
        logprobs, _ = token_logprobs(model.normed(trunk), model.head[...], batch["targets"])
        tokens = pair_sums(batch["mask"], batch["segment_ids"], most_pairs(batch["mask"].shape[1]))
        value, told = dpo(
            *of_answers(logprobs, batch),
            *of_answers(batch["reference"], batch),
            beta=settings.beta,
            kind=settings.kind,  # pyright: ignore[reportArgumentType] one of the setting's choices
            label_smoothing=settings.label_smoothing,
            weights=(tokens[0] + tokens[1]).ravel() / total,
        )
        return value + balance, {**metrics, **told}

    return loss


def make_look_back(graph: nnx.GraphDef, mesh: Mesh | None) -> Callable[[Any, Batch], Batch]:
    """The compiled ``look_back(reference, batch)``: the batch, with the log-probabilities in ``reference``."""

    @jax.jit
    @placement.on(mesh)
    def look_back(reference, batch):
        def logprobs(microbatch) -> Float[Array, "rows length"]:
            model = nnx.merge(graph, reference)
            hidden = model.hidden(*(microbatch[name] for name in ("tokens", "positions", "segment_ids")))
            return token_logprobs(hidden, model.head[...], microbatch["targets"])[0]

        return {**batch, "reference": jax.lax.map(logprobs, batch)}

    return look_back


def train(
    settings: DPO,
    optimizing: Optimizing,
    graph: nnx.GraphDef,
    state: TrainState,
    batches: Batches,
    mesh: Mesh,
    start: int,
) -> Iterator[Step]:
    """The stage's steps; see `supervised.learn`."""
    loss, told = make_loss(graph, settings, optimizing.watch), make_look_back(graph, mesh)

    def look_back(state: TrainState, batch: Batch) -> Batch:
        return told(state.reference, batch)

    return learn(settings, optimizing, loss, state, batches, mesh, start, look_back=look_back, counted="pairs")
