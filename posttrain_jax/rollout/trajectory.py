"""A conversation as tokens: what was sampled stays, bit by bit, what the policy is trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from posttrain_jax.rollout.request import Completion, Request


@dataclasses.dataclass(frozen=True)
class Turn:
    """Where one sampled answer stands: tokens ``start`` to ``end``, and why it ended there."""

    start: int
    end: int
    finish: str


class Segment(NamedTuple):
    """What is trained in one piece.

    Attributes:
      tokens: what was read and what was sampled.
      sampled: which they are.
      logprobs: of the sampled tokens, under the distribution they were drawn from; 0 elsewhere.
      versions: number of the policy that drew each token; -1 where none did or the sampler does not say.
      routing: the experts that each token was sent to, where they were asked for; -1 where unknown.
    """

    tokens: Int32[np.ndarray, " length"]
    sampled: Bool[np.ndarray, " length"]
    logprobs: Float32[np.ndarray, " length"]
    versions: Int32[np.ndarray, " length"]
    routing: Int32[np.ndarray, "length layers experts_per_token"] | None = None


def answer(prompt: Sequence[int], completion: Completion) -> Segment:
    """One answer to one prompt."""
    before, count = np.asarray(prompt, np.int32), len(completion.tokens)
    unknown = np.full(len(before) + count, -1, np.int32)
    if completion.versions is not None:
        unknown[len(before) :] = completion.versions
    return Segment(
        np.concatenate([before, completion.tokens]),
        np.arange(len(before) + count) >= len(before),
        np.concatenate([np.zeros(len(before), np.float32), completion.logprobs]),
        unknown,
        completion.routing,
    )


class Trajectory:
    """Tokens of a conversation, in which some were sampled; they are appended and never changed.

    So the prompt of every turn begins with the prompt and answer of the turn before it, and one forward pass over all
    the tokens gives every answer's log-probabilities under the context that it was sampled in. A context that is
    changed afterwards, such as one whose old tool results are hidden, is another trajectory.

    Attributes:
      turns: the sampled answers in their order.
    """

    def __init__(self, prompt: Sequence[int]):
        """Begins with tokens that nobody samples."""
        self.turns: list[Turn] = []
        self._tokens: list[int] = [int(token) for token in prompt]
        self._parts: list[tuple[Turn, Completion]] = []

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def prompt(self) -> tuple[int, ...]:
        """All tokens so far: what the next request has to ask with."""
        return tuple(self._tokens)

    def sampled(self, request: Request, completion: Completion) -> None:
        """Appends an answer.

        Raises:
          ValueError: the request's prompt is not the tokens so far, so the answer belongs to another context; or
            the answer's arrays have different lengths.
        """
        if tuple(request.prompt) != self.prompt:
            raise ValueError(
                f"an answer to a prompt of {len(request.prompt)} tokens, which are not the {len(self)} so far: "
                f"they differ from token {_shared(request.prompt, self._tokens)} on"
            )
        lengths = {"tokens": len(completion.tokens), "logprobs": len(completion.logprobs)}
        lengths |= {} if completion.versions is None else {"versions": len(completion.versions)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"an answer's arrays differ in length: {lengths}")
        turn = Turn(len(self), len(self) + len(completion.tokens), completion.finish)
        self._tokens += [int(token) for token in completion.tokens]
        self.turns.append(turn)
        self._parts.append((turn, completion))

    def append(self, tokens: Sequence[int]) -> None:
        """Appends tokens that came from elsewhere: a tool's results, a user's message."""
        self._tokens += [int(token) for token in tokens]

    @property
    def tokens(self) -> Int32[np.ndarray, " length"]:
        return np.asarray(self._tokens, np.int32)

    @property
    def mask(self) -> Bool[np.ndarray, " length"]:
        """True where a token was sampled."""
        mask = np.zeros(len(self), bool)
        for turn in self.turns:
            mask[turn.start : turn.end] = True
        return mask

    @property
    def logprobs(self) -> Float32[np.ndarray, " length"]:
        """Of the sampled tokens, under the distribution they were drawn from; 0 elsewhere."""
        logprobs = np.zeros(len(self), np.float32)
        for turn, completion in self._parts:
            logprobs[turn.start : turn.end] = completion.logprobs
        return logprobs

    @property
    def versions(self) -> Int32[np.ndarray, " length"]:
        """Number of the policy that drew each token; -1 where none did or the sampler does not say."""
        versions = np.full(len(self), -1, np.int32)
        for turn, completion in self._parts:
            if completion.versions is not None:
                versions[turn.start : turn.end] = completion.versions
        return versions

    @property
    def routing(self) -> Int32[np.ndarray, "length layers experts_per_token"] | None:
        """The experts that each token was sent to, told by the answer that it is part of or was read for."""
        told = [(turn, c.routing) for turn, c in self._parts if c.routing is not None]
        if not told:
            return None
        routing = np.full((len(self), *told[0][1].shape[1:]), -1, np.int32)
        done = 0
        for turn, own in told:
            routing[done : turn.end], done = own[done : turn.end], turn.end
        return routing

    @property
    def segment(self) -> Segment:
        """The arrays above together."""
        return Segment(self.tokens, self.mask, self.logprobs, self.versions, self.routing)


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
