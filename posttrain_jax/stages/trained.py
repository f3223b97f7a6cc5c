"""A run's newest weights, ready to answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import nnx

from posttrain_jax.chat.format import Chat
from posttrain_jax.errors import UserError
from posttrain_jax.models.decoder import abstract
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.run.checkpoint import Checkpointer, Restored
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.stages.setup import make_chat, make_engine, make_model, training_mesh


@dataclasses.dataclass(frozen=True)
class Trained:
    """What answers, and how far its training had come.

    Attributes:
      chat: messages to tokens and back.
      engine: compiled for the recipe's limits, or those asked for.
      weights: in the engine's form.
      stage: the stage that last trained the weights.
      step: steps done in that stage.
    """

    chat: Chat
    engine: Engine
    weights: nnx.State
    stage: str
    step: int


def load(recipe: Recipe, workdir: Path, log: Callable[[str], Any] = print, **limits: Any) -> Trained:
    """The newest checkpoint under ``workdir`` whose arrays are sound; ``limits`` are `make_engine`'s overrides.

    Raises:
      UserError: there is no checkpoint, or only damaged ones.
    """
    chat = make_chat(recipe)
    mesh = training_mesh(recipe)
    _, weights = abstract(make_model(recipe), mesh)
    restored = newest_weights(workdir, weights, log)
    engine = make_engine(recipe, chat, mesh=mesh, **limits)
    return Trained(chat, engine, engine.load(restored.arrays), restored.progress["stage"], restored.progress["step"])


def newest_weights(
    workdir: Path, weights: nnx.State, log: Callable[[str], Any] = print, cast: bool = False
) -> Restored:
    """The weights of the newest sound checkpoint of a run or a conversion.

    Args:
      workdir: its directory.
      weights: their shapes with the shardings to load to.
      log: called with a line for each damaged checkpoint.
      cast: whether they may be stored in another format than asked for.

    Raises:
      UserError: there is no checkpoint, only damaged ones, or one of another model.
    """
    checkpointer = Checkpointer(workdir / "checkpoints", log=log)
    try:
        restored = checkpointer.restore_subtree("weights", weights, cast)
    finally:
        checkpointer.close()
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet: train first, with launch/train.py --workdir={workdir}")
    return restored
