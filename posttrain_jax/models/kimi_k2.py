"""Kimi K2 as data (released config.json of moonshotai/Kimi-K2-Instruct, -Instruct-0905 and -Thinking)."""

import dataclasses

from posttrain_jax.models.architecture import Architecture, RopeScaling

# Instruct of July 2025; the released files say 1 and 1 for the two betas
INSTRUCT = Architecture(
    layers=61,
    hidden=7168,
    vocab=163840,
    max_length=131072,
    norm_eps=1e-6,
    heads=64,
    kv_heads=64,
    head_dim=192,
    qk_norm="none",
    rotary_dim=64,
    rotary_pairs="adjacent",
    rope_theta=5e4,
    rope_scaling=RopeScaling("yarn", 32.0, 4096, beta_fast=1.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0),
    q_rank=1536,
    kv_rank=512,
    value_dim=128,
    dense_layers=1,
    dense_ffn=18432,
    experts=384,
    experts_per_token=8,
    expert_ffn=2048,
    shared_experts=1,
    routed_scaling=2.827,
)

INSTRUCT_0905 = dataclasses.replace(
    INSTRUCT, max_length=262144, rope_scaling=dataclasses.replace(INSTRUCT.rope_scaling, factor=64.0)
)

THINKING = dataclasses.replace(INSTRUCT_0905, norm_eps=1e-5)

TINY = dataclasses.replace(
    INSTRUCT,
    layers=3,
    hidden=64,
    vocab=704,
    max_length=256,
    heads=4,
    kv_heads=4,
    head_dim=24,
    rotary_dim=8,
    rope_scaling=dataclasses.replace(INSTRUCT.rope_scaling, factor=4.0, original_length=64),
    q_rank=48,
    kv_rank=32,
    value_dim=16,
    dense_ffn=128,
    experts=8,
    experts_per_token=2,
    expert_ffn=64,
)
