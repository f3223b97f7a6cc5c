"""The loop of every stage that learns from records."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from posttrain_jax.data.pipeline import Batches
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.run.recipe import DPO, SFT, Distill, RewardModel
from posttrain_jax.stages.optimizing import Optimizing
from posttrain_jax.stages.step import Batch, Loss, Step, TrainState, make_update


def learn(
    settings: SFT | Distill | RewardModel | DPO,
    optimizing: Optimizing,
    loss: Loss,
    state: TrainState,
    batches: Batches,
    mesh: Mesh,
    start: int,
    *,
    look_back: Callable[[TrainState, Batch], Batch] = lambda state, batch: batch,
    counted: str = "tokens",
) -> Iterator[Step]:
    """Yields after every step from ``start`` + 1 to ``settings.steps``.

    ``batches`` yields ``[rows, length]`` arrays and knows its own position: ``batches.state()`` is part of the cursor.

    Args:
      look_back: adds to a batch on the mesh what the state says of it, before the update.
      counted: what the loss's mask counts; the metric's name.
    """
    update = make_update(optimizing.optimizer, loss, state, optimizing.after, optimizing.overlap)
    count = settings.rows // settings.microbatch_rows
    for number in range(start + 1, settings.steps + 1):
        rows = next(batches)
        tokens = int(np.sum(rows["segment_ids"] > 0))
        batch = jax.tree.map(lambda x: x.reshape(count, settings.microbatch_rows, *x.shape[1:]), rows)
        batch = look_back(state, meshes.put_batch(batch, mesh, batch_axis=1))
        state, metrics = update(state, batch, count)
        numbers = {**metrics, "learning_rate": optimizing.schedule(number - 1)}
        numbers[counted] = numbers.pop("tokens")
        yield Step(number, state, numbers, tokens, {"data": batches.state()}, batch=batch)
