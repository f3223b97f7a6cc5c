"""The loss of a policy update: the objective that a recipe names, and what may be added to it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posttrain_jax.objectives.cispo import cispo
from posttrain_jax.objectives.clipped import clipped_surrogate
from posttrain_jax.objectives.defaults import DEFAULTS, Defaults
from posttrain_jax.objectives.gspo import gspo
from posttrain_jax.objectives.kimi import k1_5, k2, k2_5
from posttrain_jax.objectives.kl import kl_estimate
from posttrain_jax.objectives.likelihood import negative_log_likelihood
from posttrain_jax.objectives.mismatch import disagreement, kept_on_policy, truncated_importance
from posttrain_jax.objectives.reinforce import reinforce
from posttrain_jax.objectives.value import clipped_value_loss
from posttrain_jax.parallel.logprobs import token_logprobs
from posttrain_jax.run.recipe import RL, Objective
from posttrain_jax.stages.critic import split_critic
from posttrain_jax.stages.observing import NOTHING, Watch, watched_trunk
from posttrain_jax.stages.step import Batch, Loss


def advantages_and_aggregation(settings: Objective) -> Defaults:
    """What the recipe says, and where it says nothing what the objective's makers do."""
    own = DEFAULTS[settings.name]
    return Defaults(settings.advantages or own.advantages, settings.aggregation or own.aggregation)


def policy_loss(
    settings: Objective, logprobs: Float[Array, "batch length"], weights: Float[Array, "batch length"], batch: Batch
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The named objective; ``weights`` say what each token counts, so that nothing is left to divide by."""
    arrays = logprobs, batch["old_logprobs"], batch["advantages"], weights
    ids = batch["segment_ids"]
    match settings.name:
        case "cispo":
            own = settings.cispo
            return cispo(
                *arrays,
                max_ratio=1 + own.epsilon_high if own.epsilon_high else own.max_ratio,
                min_ratio=own.min_ratio,
                mask_low=own.mask_low or None,
                mask_high=own.mask_high or None,
                total=1.0,
            )
        case "grpo" | "dapo" | "dr_grpo":
            own = getattr(settings, settings.name)
            return clipped_surrogate(*arrays, low=own.low, high=own.high, dual=own.dual or None)
        case "ppo":
            return clipped_surrogate(*arrays, low=settings.ppo.low, high=settings.ppo.high)
        case "gspo":
            own = settings.gspo
            return gspo(*arrays, ids, low=own.low, high=own.high, per_token=own.per_token)
        case "reinforce" | "rloo":
            return reinforce(*arrays)
        case "k2":
            return k2(*arrays, ids, tau=settings.k2.tau)
        case "k1_5":
            return k1_5(*arrays, ids, tau=settings.k1_5.tau)
        case "k2_5":
            own = settings.k2_5
            return k2_5(*arrays, low=own.low, high=own.high, tau=own.tau)
    raise ValueError(f"no objective {settings.name!r}; known: {', '.join(DEFAULTS)}")


def make_loss(graph: nnx.GraphDef, settings: RL, watch: Watch = NOTHING) -> Loss:
    """The objective over a microbatch of sampled tokens, with whatever the settings add to it.

    The batch holds, beside tokens and places, ``mask`` (1 on sampled tokens), ``weights`` (what each counts),
    ``old_logprobs`` and ``advantages``; where the settings ask for them `hindsight` has added ``reference``,
    ``sampler_logprobs``, ``returns`` and ``old_values``, and the stage ``ptx``, what a token of the SFT data counts,
    ``fresh``, 1 on what the newest policy drew, and ``temperature``, where it moves.
    """
    objective = settings.objective

    def loss(weights: nnx.State, batch: Batch, total):
        policy, critic = split_critic(weights)
        model = nnx.merge(graph, policy)
        trunk, balance, metrics = watched_trunk(model, batch, total, watch)
        hidden = model.normed(trunk)
        temperature = batch.get("temperature", settings.sampling.temperature)
        heat = jnp.where(batch["ptx"] > 0, 1.0, temperature) if "ptx" in batch else temperature
        logprobs, entropy = token_logprobs(hidden, model.head[...], batch["targets"], temperature=heat)

        value, told = policy_loss(objective, logprobs, _counted(objective, logprobs, batch), batch)
        value, metrics = value + balance, {**metrics, **told}
        if "reference" in batch:
            divergence = kl_estimate(logprobs, batch["reference"], objective.kl_estimate)
            metrics["reference_kl"] = (divergence * batch["weights"]).sum()
            value += objective.kl_weight * metrics["reference_kl"]
        if "ptx" in batch:
            metrics["ptx_loss"] = negative_log_likelihood(logprobs, batch["ptx"], total=1.0)
            value += objective.ptx_weight * metrics["ptx_loss"]
        if critic is not None:
            own = objective.ppo
            old = batch["old_values"], batch["returns"], batch["weights"]
            metrics["value_loss"], told = clipped_value_loss(critic(hidden), *old, clip=own.value_clip)
            value, metrics = value + own.value_weight * metrics["value_loss"], {**metrics, **told}

        sampled = batch.get("sampler_logprobs", batch["old_logprobs"])
        metrics["entropy"] = (entropy * batch["mask"]).sum() / total
        fresh = batch["mask"]
        if "fresh" in batch:  # only there trainer and sampler have the same weights
            fresh = batch["fresh"] * batch["mask"]
            metrics["fresh"] = fresh.sum() / total
        return value, metrics | disagreement(logprobs, sampled, fresh, total=total)

    return loss


def _counted(settings: Objective, logprobs: Any, batch: Batch) -> Array:
    """The weights of tokens, less for those that the sampler drew from another distribution."""
    weights, sampled = batch["weights"], batch.get("sampler_logprobs", batch["old_logprobs"])
    if settings.sampler_cap:
        weights *= truncated_importance(batch["old_logprobs"], sampled, batch["mask"], cap=settings.sampler_cap)
    if settings.drift_mask:
        known = logprobs, sampled, batch["advantages"], batch["mask"], batch["segment_ids"]
        weights *= kept_on_policy(*known, largest=settings.drift_mask)
    return weights
