"""What a step's first weights say of its rollouts, computed once before any update: values, and other log-probs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from posttrain_jax.objectives.value import generalised_advantages
from posttrain_jax.parallel import placement
from posttrain_jax.parallel.logprobs import token_logprobs
from posttrain_jax.run.recipe import RL
from posttrain_jax.stages.critic import split_critic
from posttrain_jax.stages.step import Batch

Hindsight = Callable[[nnx.State, Any, Batch, int], Batch]


def make_hindsight(graph: nnx.GraphDef, settings: RL, mesh: Mesh | None = None) -> Hindsight | None:
    """The compiled ``hindsight(weights, reference, batch, filled) -> batch``; None where a batch needs nothing more.

    * with a divergence from a reference: ``reference``, its log-probabilities;
    * with truncated importance sampling: ``old_logprobs`` are the trainer's own, and the sampler's stand in
      ``sampler_logprobs``;
    * with a critic: ``old_values``, ``returns``, and its generalised advantages, standardised over the batch.
    """
    objective = settings.objective
    reference_wanted, own_wanted, critic_wanted = (
        objective.kl_weight > 0,
        objective.sampler_cap > 0,
        objective.name == "ppo",
    )
    if not (reference_wanted or own_wanted or critic_wanted):
        return None

    def look_back(weights, reference, microbatch):
        policy, critic = split_critic(weights)
        where = tuple(microbatch[name] for name in ("tokens", "positions", "segment_ids"))

        temperature = microbatch.get("temperature", settings.sampling.temperature)

        def logprobs_and_hidden(policy, replayed=None):
            model = nnx.merge(graph, policy)
            hidden = model.hidden(*where, replayed)
            return token_logprobs(hidden, model.head[...], microbatch["targets"], temperature=temperature)[0], hidden

        found = {}
        own, hidden = logprobs_and_hidden(policy, microbatch.get("routing"))
        if own_wanted:
            found |= {"old_logprobs": own, "sampler_logprobs": microbatch["old_logprobs"]}
        if reference_wanted:
            found["reference"] = logprobs_and_hidden(reference)[0]
        if critic is not None:
            found["old_values"] = critic(hidden)
        return found

    @jax.jit
    @placement.on(mesh)
    def hindsight(weights, reference, batch, filled):
        def cut(index):
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), batch)

        def add(index, found):
            new = look_back(weights, reference, cut(index))
            return {name: found[name].at[index].set(array) for name, array in new.items()}

        shapes = jax.eval_shape(look_back, weights, reference, jax.eval_shape(cut, 0))
        nothing = {name: jnp.zeros(batch["mask"].shape[:1] + s.shape, s.dtype) for name, s in shapes.items()}
        batch = {**batch, **jax.lax.fori_loop(0, filled, add, nothing)}
        return _judged(batch, settings) if critic_wanted else batch

    return hindsight


def _judged(batch: Batch, settings: RL) -> Batch:
    """Generalised advantages with mean 0 and deviation 1 over the batch's tokens, and what the critic should learn."""
    own, shape, mask = settings.objective.ppo, batch["mask"].shape, batch["mask"]
    rewards, values, flat_mask, segments = (
        batch[name].reshape(-1, shape[-1]) for name in ("rewards", "old_values", "mask", "segment_ids")
    )
    advantages, returns = generalised_advantages(
        rewards, values, flat_mask, segments, discount=own.discount, trace=own.trace
    )
    advantages, total = advantages.reshape(shape), jnp.maximum(mask.sum(), 1.0)
    centred = (advantages - (advantages * mask).sum() / total) * mask
    advantages = centred / (jnp.sqrt(jnp.square(centred).sum() / total) + 1e-6)
    return {**batch, "advantages": advantages, "returns": returns.reshape(shape)}
