"""TRL's half of rl_step.py: the recipe's settings in TRL's words, and the callback that takes turns."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig


class Turns(TrainerCallback):
    """Times TRL's rollout batches, and one step of the other side after each.

    Attributes:
      theirs, ours: seconds of each step.
      tokens, metrics: what each of our steps says of itself.
    """

    def __init__(self, ours, updates: int):
        self.steps, self.updates = ours, updates
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.tokens: list[int] = []
        self.metrics: list[dict] = []

    def on_train_begin(self, args, state, control, **_):
        """Starts the clock."""
        self.before = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        """After the last update of a rollout batch, it is our turn."""
        if state.global_step % self.updates:
            return
        between = time.perf_counter()
        step = next(self.steps)
        jax.block_until_ready(step.state)
        after = time.perf_counter()
        self.theirs.append(between - self.before)
        self.ours.append(after - between)
        self.tokens.append(step.tokens)
        self.metrics.append(step.metrics)
        self.before = time.perf_counter()


def arguments(recipe, folder: Path, steps: int) -> GRPOConfig:
    """The recipe's settings in TRL's words."""
    rl, pace, adam = recipe.rl, recipe.rl.optimizer, recipe.optimizer
    return GRPOConfig(
        output_dir=str(folder / "trl"),
        loss_type="cispo",
        epsilon_high=rl.objective.cispo.max_ratio,
        beta=0.0,
        router_aux_loss_coef=0.0,
        scale_rewards="group",
        num_generations=rl.group_size,
        per_device_train_batch_size=rl.prompts * rl.group_size // rl.minibatches,
        steps_per_generation=rl.minibatches,
        gradient_accumulation_steps=1,
        num_iterations=1,
        max_steps=steps * rl.minibatches,
        max_completion_length=recipe.rollout.max_response,
        temperature=rl.sampling.temperature,
        top_p=rl.sampling.top_p,
        top_k=rl.sampling.top_k,
        learning_rate=pace.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=adam.beta1,
        adam_beta2=adam.beta2,
        adam_epsilon=adam.epsilon,
        weight_decay=pace.weight_decay,
        max_grad_norm=pace.clip_norm,
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        shuffle_dataset=False,
        seed=recipe.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def words(vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer for which text is token numbers with spaces; its end token lies outside the model's vocabulary."""
    pieces = {"<pad>": 0} | {str(i): i for i in range(1, vocab)} | {"<end>": vocab}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<pad>", padding_side="left"
    )


def rollout_and_backward(model, recipe, prompts) -> None:
    """What the trial of settings times: one rollout batch of equal prompts, and one backward pass over it."""
    rows = recipe.rl.prompts * recipe.rl.group_size
    inputs = torch.tensor(prompts[0]).repeat(rows, 1)
    new = recipe.rollout.max_response
    with torch.no_grad():
        whole = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=True,
            max_new_tokens=new,
            disable_compile=True,
            pad_token_id=0,
        )
    model(input_ids=whole, use_cache=False).logits.logsumexp(-1).mean().backward()
