"""The parts that a recipe names: its chat, its engine, its model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.chat.format import Chat
from posttrain_jax.errors import UserError
from posttrain_jax.models.decoder import Decoder
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.run.recipe import Recipe


def make_chat(recipe: Recipe) -> Chat:
    """The family's chat format over the recipe's tokenizer.

    Raises:
      UserError: the tokenizer has more pieces than the model has rows.
    """
    tokenizer = tokenizers.load(recipe.tokenizer, chats.FORMATS[recipe.family].special_tokens)
    if tokenizer.size > recipe.model.vocab:
        raise UserError(
            f"tokenizer={recipe.tokenizer!r} has {tokenizer.size} pieces and model.vocab={recipe.model.vocab}: "
            f"set model.vocab to {tokenizer.size} or more"
        )
    return chats.for_family(recipe.family, recipe.variant or None, tokenizer=tokenizer)


def make_engine(
    recipe: Recipe, chat: Chat, *, banks: int | None = None, mesh: Mesh | None = None, **overrides: Any
) -> Engine:
    """The generation engine with the recipe's banks and limits; ``overrides`` replace single `Limits`."""
    banks = banks or recipe.rollout.banks
    limits = dataclasses.replace(make_limits(recipe, chat, banks), **overrides)
    shared, apart = mesh if recipe.rollout.sharded else None, jax.devices()[-1] if recipe.rollout.beside else None
    where = {"mesh": shared, "device": apart}
    compute, int4 = recipe.precision.compute, recipe.rollout.int4
    return Engine(recipe.model, limits, banks=banks, compute_dtype=compute, int4=int4, **where)


def make_limits(recipe: Recipe, chat: Chat, banks: int) -> Limits:
    """What one of ``banks`` banks of the recipe's slots holds, and when its answers end."""
    return Limits(
        slots=-(-recipe.rollout.slots // banks),
        max_prompt=recipe.rollout.max_prompt,
        max_response=recipe.rollout.max_response,
        decode_chunk=recipe.rollout.decode_chunk,
        prefill_batch=recipe.rollout.prefill_batch,
        draft=recipe.rollout.draft and bool(recipe.model.mtp_layers),
        read_chunk=recipe.rollout.read_chunk,
        routing=recipe.rl.replay_routing,
        stop_tokens=tuple(chat.stop_tokens),
        top_p=recipe.rl.sampling.top_p,
        top_k=recipe.rl.sampling.top_k,
        repetition_window=recipe.rl.repetition_window,
        repetition_probability=recipe.rl.repetition_probability,
    )


def training_mesh(recipe: Recipe) -> Mesh:
    """The recipe's mesh over the devices that train.

    Raises:
      UserError: one of them is to sample beside the others, and there is no other, or there are several processes.
    """
    devices = jax.devices()
    if recipe.rollout.beside:
        if jax.process_count() > 1 or len(devices) < 2:
            raise UserError(
                f"rollout.beside=True needs two devices or more in one process; there are {len(devices)} in"
                f" {jax.process_count()}"
            )
        devices = devices[:-1]
    return make_mesh(**dataclasses.asdict(recipe.mesh), devices=devices)


def make_model(recipe: Recipe) -> Callable[[], Decoder]:
    """Builds the recipe's model from its seed; to be called under `abstract` or `materialise`."""
    precision = recipe.precision
    return lambda: Decoder(
        recipe.model,
        rngs=nnx.Rngs(recipe.seed),
        param_dtype=precision.params,
        compute_dtype=precision.compute,
        remat=precision.remat,
        qat=precision.qat,
    )
