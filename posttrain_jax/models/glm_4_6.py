"""GLM-4.5, GLM-4.6 and GLM-4.5-Air as data (released config.json of zai-org)."""

import dataclasses

from posttrain_jax.models.architecture import Architecture

GLM_4_6 = Architecture(
    layers=92,
    hidden=5120,
    vocab=151552,
    max_length=202752,
    norm_eps=1e-5,
    heads=96,
    kv_heads=8,
    head_dim=128,
    qk_norm="head",
    attention_bias=True,
    rotary_dim=64,
    rope_theta=1e6,
    dense_layers=3,
    dense_ffn=12288,
    experts=160,
    experts_per_token=8,
    expert_ffn=1536,
    shared_experts=1,
    routed_scaling=2.5,
    mtp_layers=1,
)

GLM_4_5 = dataclasses.replace(GLM_4_6, max_length=131072)

AIR = dataclasses.replace(
    GLM_4_5,
    layers=46,
    hidden=4096,
    qk_norm="none",
    dense_layers=1,
    dense_ffn=10944,
    experts=128,
    expert_ffn=1408,
    routed_scaling=1.0,
)

TINY = dataclasses.replace(
    GLM_4_6,
    layers=3,
    hidden=64,
    vocab=704,
    max_length=256,
    heads=4,
    kv_heads=2,
    head_dim=32,
    rotary_dim=16,
    rope_theta=1e4,
    dense_layers=1,
    dense_ffn=128,
    experts=8,
    experts_per_token=2,
    expert_ffn=64,
)
