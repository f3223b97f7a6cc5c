"""Optimisers as optax transformations."""

from posttrain_jax.optim.adamw import adamw
from posttrain_jax.optim.muon import muon
from posttrain_jax.optim.muonclip import muonclip

__all__ = ["adamw", "muon", "muonclip"]
