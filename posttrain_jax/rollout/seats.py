"""What the host keeps of a bank's slots: who sits where, what caches hold, and what it all came to."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int32

from posttrain_jax.rollout.request import Request

NONE = np.zeros(0, np.int32)


@dataclasses.dataclass
class Seat:
    """What the host knows of a slot.

    Attributes:
      held: the tokens in its cache that others may go on from.
      version: of the weights that computed them.
      ticket: who sits there; None where it is free.
      prompt: theirs.
      read: tokens of the prompt that are in the cache.
      drawn: after each chunk, how many tokens are drawn in all, and whose weights drew them.
      left: when it was last left.
    """

    held: Int32[np.ndarray, " tokens"] = dataclasses.field(default_factory=lambda: NONE)
    version: int | None = None
    ticket: int | None = None
    request: Request | None = None
    prompt: Int32[np.ndarray, " tokens"] = dataclasses.field(default_factory=lambda: NONE)
    read: int = 0
    drawn: list[tuple[int, int | None]] = dataclasses.field(default_factory=list)
    left: int = 0

    @property
    def free(self) -> bool:
        return self.ticket is None

    @property
    def reading(self) -> bool:
        return not self.free and self.read < len(self.prompt)

    @property
    def running(self) -> bool:
        return not self.free and not self.reading

    def leave(self, held: Int32[np.ndarray, " tokens"], when: int) -> None:
        """Frees the slot, whose cache holds these tokens."""
        self.ticket = self.request = None
        self.held, self.left = held, when


@dataclasses.dataclass
class Account:
    """What a bank has done: tokens of prompts computed and used again, tokens drawn, and slots × steps it took."""

    read: int = 0
    reused: int = 0
    drawn: int = 0
    places: int = 0

    def __add__(self, other: Account) -> Account:
        return Account(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))

    @property
    def busy(self) -> float:
        """The share of slots that drew a token in a step of decoding."""
        return self.drawn / max(self.places, 1)


def common_prefix(held: np.ndarray, prompt: np.ndarray) -> int:
    """How many tokens two sequences begin with alike."""
    size = min(len(held), len(prompt))
    different = held[:size] != prompt[:size]
    return int(different.argmax()) if different.any() else size
