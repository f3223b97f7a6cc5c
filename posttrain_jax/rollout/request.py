"""What any engine is asked, and what it answers: ours, or a server in another process."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Int32


@dataclasses.dataclass(frozen=True)
class Request:
    """One response is wanted.

    Attributes:
      prompt: all tokens so far; of a conversation over many turns, all its turns.
      seed: everything drawn for the response derives from it and from nothing else, neighbours included.
      max_tokens: longest response in tokens, its stop token included.
      temperature: 0 is greedy.
      routing: whether to tell the experts that each token was sent to.
    """

    prompt: Sequence[int]
    seed: int
    max_tokens: int
    temperature: float = 1.0
    routing: bool = False


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled response.

    Attributes:
      tokens: what was sampled, stop token included.
      logprobs: of each of them, under the distribution it was drawn from.
      finish: "stop", "length", "repetition" or "budget".
      drafted: tokens that speculative decoding proposed.
      kept: those of them that were accepted.
      versions: number of the policy that drew each token, where weights change during sampling.
      routing: experts that each token of prompt and response was sent to, where asked for; -1 where unknown.
    """

    tokens: Int32[np.ndarray, " response"]
    logprobs: Float32[np.ndarray, " response"]
    finish: str
    drafted: int = 0
    kept: int = 0
    versions: Int32[np.ndarray, " response"] | None = None
    routing: Int32[np.ndarray, "length layers experts_per_token"] | None = None


class Sampler(Protocol):
    """Answers requests, many at a time."""

    async def complete(self, request: Request) -> Completion:
        """The response to one request; others are served meanwhile."""
        ...
