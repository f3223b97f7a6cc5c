"""A reward model from preference pairs: the policy's decoder, a scalar read at a conversation's end (Bradley-Terry)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.packing import FirstFit, lay
from posttrain_jax.data.pairs import PAIRS, Tokens, most_pairs
from posttrain_jax.data.pipeline import Batches
from posttrain_jax.data.sources import Source
from posttrain_jax.errors import UserError
from posttrain_jax.objectives.preference import bradley_terry
from posttrain_jax.objectives.sequences import pair_sums
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.parallel import placement
from posttrain_jax.run.recipe import RewardModel
from posttrain_jax.stages.critic import split_critic
from posttrain_jax.stages.observing import NOTHING, Watch, watched_trunk
from posttrain_jax.stages.optimizing import Optimizing
from posttrain_jax.stages.step import Batch, Loss, Step, TrainState
from posttrain_jax.stages.supervised import learn


def make_loss(graph: nnx.GraphDef, centring: float = 0.0, watch: Watch = NOTHING) -> Loss:
    """The Bradley-Terry loss of the pairs in a microbatch of `data.pairs.lay_pairs`, over all pairs of the batch.

    The weights are a policy's with `critic.with_critic`, whose linear reading is the score.
    """

    def loss(weights: nnx.State, batch: Batch, total):
        policy, score = split_critic(weights)
        assert score is not None
        model = nnx.merge(graph, policy)
        trunk, balance, metrics = watched_trunk(model, batch, total, watch)
        ends, ids, most = batch["mask"], batch["segment_ids"], most_pairs(batch["mask"].shape[1])
        chosen, rejected = pair_sums((ends > 0) * score(model.normed(trunk)), ids, most)
        there = pair_sums(ends, ids, most)
        value, told = bradley_terry(
            chosen.ravel(), rejected.ravel(), centring=centring, weights=(there[0] + there[1]).ravel() / total
        )
        return value + balance, {**metrics, **told}

    return loss


def train(
    settings: RewardModel,
    optimizing: Optimizing,
    graph: nnx.GraphDef,
    state: TrainState,
    batches: Batches,
    mesh: Mesh,
    start: int,
) -> Iterator[Step]:
    """The stage's steps; see `supervised.learn`."""
    loss = make_loss(graph, settings.centring, optimizing.watch)
    return learn(settings, optimizing, loss, state, batches, mesh, start, counted="pairs")


class Scorer:
    """Scores whole conversations with a reward model, ``rows`` packed rows of ``length`` tokens at a time."""

    def __init__(self, graph: nnx.GraphDef, rows: int, length: int, mesh: Mesh):
        self._rows, self._length, self._mesh = rows, length, mesh

        @jax.jit(out_shardings=meshes.replicated(mesh))
        @placement.on(mesh)
        def read(weights, batch):
            policy, score = split_critic(weights)
            assert score is not None
            where = (batch[name] for name in ("tokens", "positions", "segment_ids"))
            return score(nnx.merge(graph, policy).hidden(*where))

        self._read = read

    def __call__(self, weights: nnx.State, sequences: Sequence[Sequence[int]]) -> Float[np.ndarray, " sequences"]:
        """The score that each sequence has at its last token.

        Raises:
          ValueError: a sequence is longer than a row.
        """
        fit = FirstFit(self._length)
        places = [fit.place(len(sequence)) for sequence in sequences]
        read: list[jax.Array] = []
        for first in range(0, len(fit), self._rows):
            here = [
                (place._replace(row=place.row - first), sequence, [0] * len(sequence))
                for place, sequence in zip(places, sequences, strict=True)
                if place is not None and first <= place.row < first + self._rows
            ]
            batch = lay(here, rows=self._rows, length=self._length)
            read.append(self._read(weights, meshes.put_batch(batch, self._mesh)))
        values = np.concatenate(jax.device_get(read)) if read else np.zeros((0, self._length), np.float32)
        return np.array([values[p.row, p.columns.stop - 1] for p in places if p is not None], np.float64)


def heldout(source: Source, chat: Chat, settings: RewardModel) -> list[Tokens]:
    """The first ``settings.heldout`` pairs of a source that fit a row, or all there are.

    Raises:
      UserError: a pair is too long and ``settings.on_too_long`` is "error", or all are too long.
    """
    found: list[Tokens] = []
    for index in range(min(len(source), 2 * settings.heldout)):
        tokens = PAIRS.encode(chat, source[index])
        size = PAIRS.size(tokens)
        if size <= settings.length:
            found.append(tokens)
        elif settings.on_too_long == "error":
            raise UserError(
                f"{source.where(index)} has {size} tokens, more than reward_model.length={settings.length}: set it "
                f"to {size} or more, or reward_model.on_too_long to 'skip'"
            )
        if len(found) == settings.heldout:
            break
    if not found:
        raise UserError(f"no held-out pair is as short as reward_model.length={settings.length}: set it higher")
    return found


def accuracy(scorer: Scorer, weights: nnx.State, pairs: Sequence[Tokens]) -> float:
    """Share of pairs whose chosen answer scores higher; equal scores are half right."""
    scores = scorer(weights, [tokens for pair in pairs for tokens in (pair.chosen, pair.rejected)])
    return float(np.mean((np.sign(scores[::2] - scores[1::2]) + 1) / 2))
