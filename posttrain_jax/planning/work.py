"""What a recipe has to compute, whoever computes it: programs by name, their calls, tokens and FLOPs. Imports no JAX.

A token trained on takes 6 FLOPs a weight that it meets, one sampled or prefilled 2; attention over a context of c
tokens 4 c FLOPs a head and dimension forward (two products; scores and values), half of c on average in a row of
training. Recomputing a layer is no work of the model, so rematerialisation lowers the utilisation that is told.
"""

from __future__ import annotations

import dataclasses

from posttrain_jax.models.architecture import FULL, Architecture
from posttrain_jax.run.phases import of
from posttrain_jax.run.recipe import Recipe

SFT, RL, PREFILL, DECODE, TRANSFER = PROGRAMS = ("sft", "rl", "prefill", "decode", "transfer")
ABOUT = {
    SFT: "a step of supervised fine-tuning",
    RL: "an update of the policy",
    PREFILL: "a batch of prompts",
    DECODE: "a chunk of tokens in every slot",
    TRANSFER: "weights from trainer to sampler",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one call of a program.

    Attributes:
      tokens: trained on, prefilled or sampled.
      flops: of the model's own arithmetic, over all devices.
      calls: in the whole recipe.
    """

    tokens: int
    flops: float
    calls: int


def work(recipe: Recipe, name: str) -> Work:
    """What one call of a program does, if every response is as long as it may be and no group is sampled again.

    A call is one with the recipe's own shapes; the calls of all phases are counted as such.
    """
    model, rollout, rl = recipe.model, recipe.rollout, recipe.rl
    stages = of(recipe)
    own, taught = ([p.settings for p in stages if p.kind == kind] for kind in ("rl", "distill"))
    asked = sum(each.steps * each.prompts for each in own) + sum(each.prompts * len(each.teachers) for each in taught)
    sampled = sum(each.steps * each.prompts * each.group_size for each in own)
    sampled += sum(each.prompts * len(each.teachers) * each.samples for each in taught)
    if name == SFT:
        tokens = recipe.sft.rows * recipe.sft.length
        calls = sum(phase.steps for phase in stages if phase.kind in ("sft", "distill"))
        return Work(tokens, 3 * _forward(model, tokens, recipe.sft.length / 2), calls)
    if name == RL:
        groups = -(-rl.prompts // rl.minibatches)
        rows = -(-groups * rl.group_size // (rl.length // (rollout.max_prompt + rollout.max_response)))
        tokens = (rows + (rl.objective.ptx_rows if rl.objective.ptx_weight else 0)) * rl.length
        calls = sum(each.steps * each.minibatches for each in own)
        return Work(tokens, 3 * _forward(model, tokens, rl.length / 2), calls)
    if name == PREFILL:
        tokens = rollout.prefill_batch * rollout.max_prompt
        return Work(tokens, _forward(model, tokens, rollout.max_prompt / 2), -(-asked // rollout.prefill_batch))
    if name == DECODE:
        slots = -(-rollout.slots // rollout.banks)
        tokens = slots * rollout.decode_chunk
        chunks = -(-rollout.max_response // rollout.decode_chunk)
        context = rollout.max_prompt + rollout.max_response / 2
        return Work(tokens, _forward(model, tokens, context), -(-sampled // slots) * chunks)
    return Work(0, 0.0, sum(each.steps for each in own) + sum(len(each.teachers) for each in taught))


def _forward(model: Architecture, tokens: float, context: float) -> float:
    """FLOPs of a forward pass over tokens that see so many others on average."""
    attention = 0.0
    for layer in range(model.layers):
        if model.kind(layer).attention == FULL:
            attention += 2 * model.heads * (model.head_dim + (model.value_dim or model.head_dim)) * context
        else:
            attention += 4 * model.heads * model.head_dim**2
    return tokens * (2 * model.active_parameters + attention)
