"""Our side of the generation benchmarks: an engine of a recipe, and responses of any length from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from posttrain_jax.rollout.bank import Bank
from posttrain_jax.rollout.request import Request
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.stages.setup import make_chat, make_engine


@dataclasses.dataclass
class Ours:
    """The engine with ``batch`` slots in the recipe's banks; ``stops`` are the tokens that end a response."""

    recipe: Recipe
    weights: nnx.State
    batch: int
    prompt: int
    new: int
    stops: tuple[int, ...] = ()

    def __post_init__(self):
        banks = min(self.batch, self.recipe.rollout.banks)
        share = -(-self.batch // banks)
        self.engine = make_engine(
            self.recipe,
            make_chat(self.recipe),
            banks=banks,
            slots=share,
            prefill_batch=share,
            max_prompt=self.prompt,
            max_response=self.new,
            stop_tokens=self.stops,
            repetition_window=0,
        )
        self.loaded = self.engine.load(self.weights)

    def __call__(self, prompts: np.ndarray, temperature: float = 0.0, seed: int = 0) -> list[np.ndarray]:
        """The tokens of the response to each prompt, any number of them."""
        answers = self.engine.generate(self.loaded, prompts.tolist(), jax.random.key(seed), temperature=temperature)
        return [completions[0].tokens for completions in answers]

    def busy(self, prompts: np.ndarray, temperature: float) -> float:
        """The share of the places of one bank's slots that drew a token while somebody waited for a seat."""
        bank: Any = Bank(self.engine, self.loaded, jax.random.key(0), reuse=False)
        for number, prompt in enumerate(prompts.tolist()):
            bank.submit(number, Request(prompt, number, self.new, temperature))
        while bank.waiting:
            bank.poll()
        return bank.account.drawn / bank.account.places
