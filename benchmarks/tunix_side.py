"""The same weights in Tunix's Qwen3 mixture of experts, its sampler over them, and its GRPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen3.model import ModelConfig, Qwen3
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

from posttrain_jax.models.architecture import Architecture

# Qwen3's mixture of experts, of the two sides' shapes: norms of each head, whole heads turned, softmax scores
FORM = {"qk_norm": "head", "rope_theta": 1e6, "scoring": "softmax", "selection_bias": False}


def model(arch: Architecture, weights: dict[tuple, Any]) -> Qwen3:
    """Tunix's model with ours' ``weights``, those of layers one by one, by their paths."""
    config = ModelConfig(
        num_layers=arch.layers,
        vocab_size=arch.vocab,
        embed_dim=arch.hidden,
        hidden_dim=arch.expert_ffn,
        num_heads=arch.heads,
        head_dim=arch.head_dim,
        num_kv_heads=arch.kv_heads,
        rope_theta=int(arch.rope_theta),
        norm_eps=arch.norm_eps,
        num_experts=arch.experts,
        num_experts_per_tok=arch.experts_per_token,
    )
    made = Qwen3(config, rngs=nnx.Rngs(0))
    theirs = nnx.state(made)
    for path, leaf in nnx.to_flat_state(theirs):
        leaf[...] = jnp.asarray(weights[_ours(path)]).reshape(leaf.shape)
    nnx.update(made, theirs)
    return made


def _ours(path: tuple) -> tuple:
    whole = {"embedder": "embed", "final_norm": "norm", "lm_head": "head"}
    if path[0] in whole:
        return (whole[path[0]],)
    layer, part, rest = path[:2], path[2], path[3:]
    if part == "attn":
        return *layer, "attention", rest[0].removesuffix("_proj")
    if part == "mlp":
        return *layer, "ffn", rest[0].removesuffix("_proj")
    return *layer, {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}[part]


class Numbers:
    """A tokenizer whose pieces are numbers with spaces between."""

    def __init__(self, padding: int):
        self._padding = padding  # takes part in nothing

    def encode(self, text: str) -> list[int]:
        """Token numbers."""
        return [int(word) for word in text.split()]

    def decode(self, tokens: Sequence[int]) -> str:
        """The numbers as text."""
        return " ".join(map(str, tokens))

    def bos_id(self) -> int:
        """None: 0 is no token to it, and nothing is put before a prompt."""
        return 0

    def eos_id(self) -> int:
        """None ends a response but what is named."""
        return -1

    def pad_id(self) -> int:
        """What fills prompts up."""
        return self._padding


def sampler(qwen: Qwen3, length: int) -> Sampler:
    """A sampler with a cache of ``length`` tokens; padding is a token past the vocabulary."""
    config = qwen.config
    cache = CacheConfig(length, config.num_layers, config.num_kv_heads, config.head_dim)
    return Sampler(qwen, Numbers(config.vocab_size), cache)


def learner(qwen: Qwen3, recipe: Any, updates: int) -> GRPOLearner:
    """Tunix's GRPO with the recipe's sizes: no KL, one pass over each batch, ``updates`` in all, AdamW.

    Every role lies on one device. The reward is the mean token number of a response, as of the other sides.
    """
    rl, pace, adam = recipe.rl, recipe.rl.optimizer, recipe.optimizer
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    optimizer = optax.chain(
        optax.clip_by_global_norm(pace.clip_norm),
        optax.adamw(pace.learning_rate, adam.beta1, adam.beta2, adam.epsilon, weight_decay=pace.weight_decay),
    )
    padding = 0
    training = RLTrainingConfig(
        actor_optimizer=optimizer,
        eval_every_n_steps=updates + 1,
        max_steps=updates,
        mini_batch_size=rl.prompts // rl.minibatches,
        train_micro_batch_size=rl.prompts // rl.minibatches,
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=recipe.rollout.max_response,
        max_prompt_length=recipe.rollout.max_prompt,
        kv_cache_size=recipe.rollout.max_prompt + recipe.rollout.max_response,
        temperature=rl.sampling.temperature,
        top_p=rl.sampling.top_p,
        eos_tokens=[-1],
    )
    cluster = RLCluster(
        actor=qwen,
        tokenizer=Numbers(padding),
        cluster_config=ClusterConfig(
            role_to_mesh={role: mesh for role in (Role.ACTOR, Role.REFERENCE, Role.ROLLOUT)},
            training_config=training,
            rollout_config=rollout,
        ),
    )

    def reward(prompts, completions, **_):
        return [float(np.mean([int(word) for word in text.split()])) for text in completions]

    return GRPOLearner(cluster, GRPOConfig(num_generations=rl.group_size, num_iterations=1, beta=0.0), reward)
