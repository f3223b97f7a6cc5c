"""The expert of a world at work in a variant of it: what it says and calls there, and how the world rewards it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from posttrain_jax.chat.format import Message
from posttrain_jax.environments import worlds
from posttrain_jax.environments.expert import ENDING, spoken
from posttrain_jax.environments.user import User, WithUser
from posttrain_jax.synthesis.dressed import Dressed
from posttrain_jax.synthesis.personas import ASKS_BACK, ScriptedUser, script
from posttrain_jax.synthesis.variant import BUSY, LOST, Variant
from posttrain_jax.synthesis.verbs import VERBS

MOST_TRIES = 6
AGAIN = "that failed for a moment, again"
CARELESS_WORDS = "Done."


class Unsolved(Exception):
    """The expert met something that it does not know."""


class _Gone(Exception):
    """The episode ended while the expert still acted."""


@dataclasses.dataclass(frozen=True)
class Played:
    """An episode.

    Attributes:
      messages: the conversation, the system prompt first where there is one.
      tools: declarations.
      reward: of the whole.
      outcomes: how many calls ended in which way.
      ended: "done", or why it ended otherwise.
    """

    messages: list[dict[str, Any]]
    tools: list[Mapping[str, Any]]
    reward: float
    outcomes: Mapping[str, int]
    ended: str = "done"


def staged(world: str, level: int, variant: Variant, user: User | None = None) -> tuple[WithUser, Dressed]:
    """The environment of a task: a world in a variant, and a user who tells what to do."""
    inner = Dressed(worlds.world(world).make(level), variant, reads(world))
    return WithUser(inner, user or ScriptedUser(variant.persona)), inner


def reads(world: str) -> frozenset[str]:
    """The world's tools that change nothing."""
    return frozenset(name for name, verb in VERBS[world].items() if verb.reads)


class _Hand:
    """Says calls in the variant's words, one by one where it must, and repeats what fails for a moment."""

    def __init__(self, environment: WithUser, variant: Variant, forgets: frozenset[str] = frozenset()):
        self.environment, self.variant, self.forgets = environment, variant, forgets
        self.messages: list[dict[str, Any]] = []
        self.reward = 0.0
        self.over = False

    async def __call__(self, reasoning: str, *calls: Message) -> list[str]:
        told: dict[int, str] = {}
        why = reasoning
        for _ in range(1 + MOST_TRIES * len(calls)):
            left = [i for i in range(len(calls)) if i not in told and calls[i]["name"] not in self.forgets]
            if not left:
                return [told.get(i, "") for i in range(len(calls))]
            now = left if self.variant.parallel else left[:1]
            step = await self._step(self._spoken(why, [calls[i] for i in now]))
            if self.over:
                return []
            for i, message in zip(now, step, strict=True):
                text = self.variant.unwrapped(message["content"])
                reason = text.removeprefix("error: ")
                if reason in BUSY + LOST:
                    why = AGAIN
                elif reason != text:
                    raise Unsolved(reason)
                else:
                    told[i], why = self.variant.inward(text), reasoning
        raise Unsolved("a tool went on failing")

    async def answer(self, words: str) -> None:
        """Says words to the user."""
        thought = {"reasoning_content": self.variant.outward(ENDING)} if self.variant.thinking else {}
        await self._step({"role": "assistant", **thought, "content": self.variant.outward(words)})

    async def _step(self, message: dict[str, Any]) -> list[Message]:
        if self.over:
            raise _Gone
        self.messages.append(message)
        step = await self.environment.step(message)
        self.reward += step.reward
        self.over = step.done
        if not step.done:
            self.messages += map(dict, step.messages)
        return list(step.messages)

    def _spoken(self, reasoning: str, calls: list[Message]) -> dict[str, Any]:
        message = dict(spoken(self.variant.outward(reasoning), *map(self.variant.call, calls)))
        if not self.variant.thinking:
            del message["reasoning_content"]
        return message


async def played(world: str, level: int, seed: int, variant: Variant, forgets: frozenset[str] = frozenset()) -> Played:
    """The expert's episode; ``forgets`` names the world's tools that a careless one does not call.

    Raises:
      Unsolved: the variant left it without a way.
    """
    solve = worlds.world(world).solve
    if solve is None:
        raise Unsolved(f"nobody solves world {world!r}")
    environment, inner = staged(world, level, variant)
    observation = await environment.reset(seed)
    hand = _Hand(environment, variant, forgets)
    try:
        for _, wish in script(variant.persona, worlds.world(world).question(level, seed)):
            words = await solve(wish, hand) if wish else ASKS_BACK
            if not hand.over and (words is not None or forgets):
                await hand.answer(words or CARELESS_WORDS)
    except _Gone:
        raise Unsolved("the episode ended early") from None
    except (ValueError, LookupError, RuntimeError) as error:  # a solver that does not find what it looks for
        raise Unsolved(f"{type(error).__name__}: {error}") from error
    finally:
        await environment.close()
    if not hand.over:
        raise Unsolved("the episode did not end")
    messages = [*map(dict, observation.messages), *hand.messages]
    return Played(messages, list(observation.tools), hand.reward, dict(inner.outcomes))


async def tools_needed(world: str, level: int, seed: int) -> frozenset[str]:
    """The world's tools that the expert calls in an episode."""
    record = await worlds.world(world).demonstrate(level, seed)
    called = [call["function"]["name"] for message in record["messages"] for call in message.get("tool_calls", ())]
    return frozenset(called)
