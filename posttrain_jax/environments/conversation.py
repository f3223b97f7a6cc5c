"""A conversation under way: its messages, and beside them its tokens, segment by segment.

An answer's tokens are kept as they were sampled, its reasoning included, whatever comes after it: what an agent plays
is the family's format with ``keep_all_thinking``. When old tool results are hidden to make room, a new segment begins;
there the earlier answers are context, still token by token as they were sampled, and are not trained a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain_jax.chat.format import Chat, Message
from posttrain_jax.environments.environment import Observation
from posttrain_jax.rollout.request import Completion, Request
from posttrain_jax.rollout.trajectory import Trajectory

HIDDEN = "(hidden)"


class Conversation:
    """Messages and tokens that grow together.

    Attributes:
      messages: all of them in full, nothing hidden.
    """

    def __init__(self, chat: Chat, observation: Observation, thinking: bool = True):
        self.chat, self.tools, self.thinking = chat, observation.tools, thinking
        self.messages: list[dict[str, Any]] = [dict(message) for message in observation.messages]
        self._head = chat.encode(self.messages, self.tools, thinking, add_generation_prompt=True)[0]
        self._shown = list(self.messages)
        self._turns: list[tuple[int, list[int], list[int]]] = []  # the answer's place, its tokens, what follows them
        self._segments = [Trajectory(self._head)]
        self._waiting: list[int] = []  # tokens behind the last answer; a segment that ends there does not need them

    @property
    def segments(self) -> list[Trajectory]:
        """The trajectories, each of which ends with a sampled answer."""
        return [segment for segment in self._segments if segment.turns]

    @property
    def prompt(self) -> tuple[int, ...]:
        """What the next request has to ask with."""
        return (*self._segments[-1].prompt, *self._waiting)

    def answered(self, request: Request, completion: Completion) -> dict[str, Any]:
        """Takes an answer; returns the message that it stands for, with ``errors`` where it is malformed."""
        self._segments[-1].append(self._waiting)
        self._waiting = []
        self._segments[-1].sampled(request, completion)
        tokens = completion.tokens.tolist()
        message = self.chat.parse(self.chat.tokenizer.decode(tokens), self.tools, self.thinking)
        self._turns.append((len(self.messages), tokens, []))
        self.messages.append(message)
        self._shown.append(message)
        return message

    def came_back(self, messages: Sequence[Message]) -> None:
        """Takes what came back of the last answer: tool results or user messages.

        Raises:
          ChatError: there are none, or the family cannot write them.
        """
        self.messages += [dict(message) for message in messages]
        self._shown += [dict(message) for message in messages]
        place, sampled, _ = self._turns[-1]
        self._waiting = self._following(place, sampled, len(self.messages))
        self._turns[-1] = (place, sampled, self._waiting)

    def hide(self, keep: int) -> bool:
        """Hides every tool result but the latest ``keep``, and begins a new segment; False if there was none to hide.

        For when results have come back and the next answer is due. One no longer than its replacement stays as it is.
        """
        first = self._turns[0][0] if self._turns else len(self._shown)
        results = [i for i in range(first, len(self._shown)) if self._shown[i]["role"] == "tool"]
        old = [
            i for i in results[: max(0, len(results) - keep)] if len(str(self._shown[i].get("content"))) > len(HIDDEN)
        ]
        if not old:
            return False
        for index in old:
            self._shown[index] = {**self._shown[index], "content": HIDDEN}
        ends = [*(place for place, _, _ in self._turns[1:]), len(self._shown)]
        for number, ((place, sampled, following), end) in enumerate(zip(self._turns, ends, strict=True)):
            if any(place < index < end for index in old):
                following = self._following(place, sampled, end)
            self._turns[number] = (place, sampled, following)
        *earlier, (_, last, self._waiting) = self._turns
        self._segments.append(Trajectory(self._head))
        for _, sampled, following in earlier:
            self._segments[-1].append(sampled)
            self._segments[-1].append(following)
        self._segments[-1].append(last)
        return True

    def _following(self, place: int, sampled: list[int], end: int) -> list[int]:
        return self.chat.continuation(self._shown[:end], sampled, self.tools, self.thinking)
