"""How large a recipe's checkpoints are, and the memory that its training takes."""

from __future__ import annotations

from posttrain_jax.run.recipe import Recipe

# what a recipe is stored as: bytes of one number in each format
BYTES = {"float32": 4, "bfloat16": 2}


def checkpoint_bytes(recipe: Recipe) -> int:
    """Size of one checkpoint: the weights, float32 copies if kept, and the optimiser's moments.

    AdamW has two moments of every weight, Muon one of hidden matrices.
    """
    model, optimizer = recipe.model, recipe.optimizer
    weights, one = model.parameters, BYTES[recipe.precision.params]
    masters = 4 if optimizer.master_weights and one < 4 else 0
    first = BYTES[optimizer.momentum_dtype] if optimizer.momentum_dtype else masters or one
    second = weights if optimizer.name == "adamw" else 2 * model.vocab * model.hidden
    return weights * (one + masters + first) + second * (masters or one)


def training_bytes(recipe: Recipe) -> int:
    """Memory that training takes over all devices: a checkpoint's arrays, gradients as large as the weights, and half
    as much again for activations and key/value caches."""
    gradients = BYTES[recipe.precision.params] * recipe.model.parameters
    return (checkpoint_bytes(recipe) + gradients) * 3 // 2
