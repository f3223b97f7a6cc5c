"""MiniMax-M1 and Text-01 as data (released config.json of MiniMaxAI): seven lightning layers to one of softmax."""

import dataclasses

from posttrain_jax.models.architecture import FULL, LIGHTNING, Architecture

_ALPHA = 3.5565588200778455  # (2 * 80) ** (1 / 4)

RELEASED = Architecture(
    layers=80,
    hidden=6144,
    vocab=200064,
    max_length=10_240_000,
    norm_eps=1e-5,
    heads=64,
    kv_heads=8,
    head_dim=128,
    qk_norm="none",
    rotary_dim=64,
    rope_theta=1e7,
    pattern=(LIGHTNING,) * 7 + (FULL,),
    post_norm=True,
    full_alpha=_ALPHA,
    lightning_alpha=_ALPHA,
    ffn_alpha=_ALPHA,
    experts=32,
    experts_per_token=2,
    expert_ffn=9216,
    scoring="softmax",
    selection_bias=False,
)

TINY = dataclasses.replace(
    RELEASED,
    layers=4,
    hidden=64,
    vocab=704,
    max_length=256,
    heads=4,
    kv_heads=2,
    head_dim=32,
    rotary_dim=16,
    rope_theta=1e4,
    pattern=(LIGHTNING, FULL),
    full_alpha=8**0.25,
    lightning_alpha=8**0.25,
    ffn_alpha=8**0.25,
    experts=8,
    expert_ffn=64,
)
