"""Supervised fine-tuning: packed batches in, one optimiser step each."""

from __future__ import annotations

from collections.abc import Iterator

from flax import nnx
from jax.sharding import Mesh

from posttrain_jax.data.pipeline import Batches
from posttrain_jax.objectives.likelihood import negative_log_likelihood
from posttrain_jax.objectives.multi_token import further_targets
from posttrain_jax.parallel.logprobs import token_logprobs
from posttrain_jax.run.recipe import SFT, Distill
from posttrain_jax.stages.observing import NOTHING, Watch, watched_trunk
from posttrain_jax.stages.optimizing import Optimizing
from posttrain_jax.stages.step import Batch, Loss, Step, TrainState
from posttrain_jax.stages.supervised import learn


def make_loss(graph: nnx.GraphDef, mtp_weight: float = 0.0, watch: Watch = NOTHING) -> Loss:
    """Mean negative log-likelihood of the assistant's tokens over the global batch.

    A model with a layer of multi-token prediction adds ``mtp_weight`` times the same of the tokens one further, also
    divided by all trained tokens (DeepSeek-V3, equations 24 and 25).
    """

    def loss(weights: nnx.State, batch: Batch, total):
        model = nnx.merge(graph, weights)
        where = batch["positions"], batch["segment_ids"]
        trunk, balance, metrics = watched_trunk(model, batch, total, watch)
        logprobs, _ = token_logprobs(model.normed(trunk), model.head[...], batch["targets"])
        value = negative_log_likelihood(logprobs, batch["mask"], total=total) + balance
        if not (model.arch.mtp_layers and mtp_weight):
            return value, metrics
        targets, mask = further_targets(batch["targets"], batch["mask"], batch["segment_ids"])
        logprobs, _ = token_logprobs(model.next_hidden(trunk, batch["targets"], *where), model.head[...], targets)
        further = negative_log_likelihood(logprobs, mask, total=total)
        return value + mtp_weight * further, {**metrics, "mtp_loss": further}

    return loss


def train(
    settings: SFT | Distill,
    optimizing: Optimizing,
    graph: nnx.GraphDef,
    state: TrainState,
    batches: Batches,
    mesh: Mesh,
    start: int,
) -> Iterator[Step]:
    """The stage's steps; see `supervised.learn`."""
    loss = make_loss(graph, settings.mtp_weight, optimizing.watch)
    return learn(settings, optimizing, loss, state, batches, mesh, start)
