"""What training looks at beside the loss, and does about it: experts' loads, and the attention's largest logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posttrain_jax.models.decoder import Decoder
from posttrain_jax.models.layer import Seen
from posttrain_jax.objectives.load_balance import bias_step, expert_load, imbalance, sequence_balance
from posttrain_jax.optim.names import names
from posttrain_jax.run.recipe import Router
from posttrain_jax.stages.step import MAX_LOGITS, Batch

LOAD = "expert_load"  # of every layer, among a loss's metrics


@dataclasses.dataclass(frozen=True)
class Watch:
    """What is looked at in a forward pass.

    Attributes:
      router: what training does to the routers, which says whether their loads are needed.
      logits: whether the largest attention logit of each head is needed, as by QK-Clip.
    """

    router: Router = Router()
    logits: bool = False


NOTHING = Watch()


def watched_trunk(
    model: Decoder, batch: Batch, total: Float[Array, ""], watch: Watch
) -> tuple[Float[Array, "batch length hidden"], Float[Array, ""] | float, dict[str, Any]]:
    """The model's trunk, what its routing adds to the loss, and metrics; ``watch`` says what is looked at."""
    tokens, positions, segment_ids = (batch[name] for name in ("tokens", "positions", "segment_ids"))
    replayed = batch.get("routing")
    loads = bool(watch.router.balance_weight or watch.router.bias_rate)
    if not (loads or watch.logits):
        return model.trunk(tokens, positions, segment_ids, replayed), 0.0, {}

    def look(seen: Seen):
        found = {}
        if loads and seen.routing is not None:
            scores, chosen = seen.routing.scores, seen.routing.chosen
            found["balance"] = sequence_balance(scores, chosen, segment_ids, batch["mask"], total=total)
            found["load"] = expert_load(chosen, segment_ids, model.arch.experts)
        if watch.logits and seen.peaks is not None:
            found["peaks"] = seen.peaks
        return found

    trunk, stacks = model.watched_trunk(tokens, positions, segment_ids, look, replayed)
    layers = {f"stacks/{s}/{p}": found for s, stack in enumerate(stacks) for p, found in enumerate(stack)}
    balance, metrics = 0.0, {}
    if loads:
        balance = sum(found["balance"].sum() for found in layers.values() if "balance" in found)
        metrics["balance_loss"] = balance
        metrics[LOAD] = {place: found["load"] for place, found in layers.items() if "load" in found}
    if watch.logits:
        peaks = {f"{place}/attention": found["peaks"] for place, found in layers.items() if "peaks" in found}
        metrics[MAX_LOGITS] = peaks
    return trunk, watch.router.balance_weight * balance, metrics


def steer(weights: nnx.State, metrics: dict[str, Any], settings: Router) -> tuple[nnx.State, dict[str, Any]]:
    """After an update: selection biases one step towards an even load, where the settings ask for it.

    Returns:
      The weights, and the metrics with the loads told in one number.
    """
    load = metrics.get(LOAD)
    if load is None:
        return weights, metrics
    flat = dict(weights.flat_state())
    for place, layers in load.items():
        _, s, p = place.split("/")
        path = ("stacks", int(s), int(p), "ffn", "bias")
        if settings.bias_rate and path in flat:
            flat[path] = flat[path].replace(bias_step(flat[path].get_value(), layers, settings.bias_rate))
    told = jnp.stack([imbalance(layers) for layers in load.values()]).mean()
    metrics = {name: value for name, value in metrics.items() if name != LOAD} | {"imbalance": told}
    return nnx.State.from_flat_path(flat.items()), metrics


def is_router(path: tuple) -> bool:
    """Whether a weight chooses experts."""
    along = names(path)
    return "router" in along or ("ffn" in along and "bias" in along)
