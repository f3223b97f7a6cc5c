"""A world played in a variant: calls go in as the world's, results come out as the variant's, some fail at first."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from posttrain_jax.chat.format import Message
from posttrain_jax.chat.messages import calls_of
from posttrain_jax.environments.environment import Environment, Observation, Step
from posttrain_jax.environments.tools import Tool
from posttrain_jax.synthesis.variant import BUSY, LOST, Variant

MOST_FAILURES = 3  # of an episode


class Dressed:
    """An environment around another.

    A failure is drawn for each call from the episode's seed: either nothing was done ("busy"), or, of a tool that only
    reads, the result was lost. So a failed call may always be repeated.

    Attributes:
      outcomes: how the calls ended: success, busy, lost, refused (by the world), unknown, invalid, distractor.
    """

    def __init__(self, environment: Environment, variant: Variant, reads: frozenset[str] = frozenset()):
        """``reads`` has the world's names of the tools that only read."""
        self._environment, self._variant, self._reads = environment, variant, reads
        self._tools: dict[str, tuple[str, Tool]] = {}  # the world's name and the tool, by the variant's name
        self._rng = random.Random()
        self.outcomes: Counter[str] = Counter()

    async def reset(self, seed: int) -> Observation:
        """The world's beginning in the variant's words, under its system prompt."""
        self._rng, self.outcomes = random.Random(f"failures/{seed}"), Counter()
        began = await self._environment.reset(seed)
        by_name = {tool["function"]["name"]: tool for tool in began.tools}
        dressed = {name: self._variant.declared(by_name[name]) for name in self._variant.dresses}
        self._tools = {tool.name: (name, tool) for name, tool in dressed.items()}
        system = [{"role": "system", "content": self._variant.system}] if self._variant.system else []
        messages = [{**message, "content": self._variant.outward(message["content"])} for message in began.messages]
        tools = [tool.declaration for tool in dressed.values()] + list(self._variant.distractors)
        random.Random(f"order/{seed}").shuffle(tools)
        return Observation([*system, *messages], tools)

    async def step(self, message: Message) -> Step:
        """Runs the calls that do not fail; words without a call go to the world as they are meant."""
        calls = calls_of(message, 0)
        if not calls:
            return await self._environment.step({**message, "content": self._variant.inward(message["content"])})
        told: list[str | None] = []
        inner: list[dict[str, Any]] = []
        lost: list[bool] = []
        for call in calls:
            failed, name, arguments, drop = self._received(call.name, call.values(0))
            told.append(failed)
            if failed is None:
                inner.append({"type": "function", "function": {"name": name, "arguments": arguments}})
                lost.append(drop)
        step = Step()
        if inner:
            step = await self._environment.step({"role": "assistant", "content": "", "tool_calls": inner})
        came = iter(zip(step.messages, lost, strict=True)) if step.messages else iter(())
        results = []
        for call, text in zip(calls, told, strict=True):
            if text is None:
                text = self._result(*next(came)) if step.messages else "ok"
            identity = {"tool_call_id": call.id} if call.id else {}
            results.append({"role": "tool", "content": self._variant.wrapped(text), **identity})
        return Step(results, step.reward, step.done, step.info)

    async def close(self) -> None:
        """Closes the world."""
        await self._environment.close()

    def _received(self, name: str, arguments: dict[str, Any]) -> tuple[str | None, str, dict[str, Any], bool]:
        """Why a call does not reach the world, or None; the world's name and arguments; whether its result is lost."""
        if name in {tool["function"]["name"] for tool in self._variant.distractors}:
            return self._failed("distractor", "not available here"), "", {}, False
        if name not in self._tools:
            return self._failed("unknown", f"no tool {name!r}; there are: {', '.join(self._tools)}"), "", {}, False
        own, tool = self._tools[name]
        if problems := tool.problems(arguments):
            return self._failed("invalid", "; ".join(problems)), "", {}, False
        back = {new: old for old, new in self._variant.dresses[own].arguments.items()}
        meant = {back[key]: self._variant.inward(value) for key, value in arguments.items()}
        fails = self._rng.random() < self._variant.failures
        if not fails or self.outcomes["busy"] + self.outcomes["lost"] >= MOST_FAILURES:
            return None, own, meant, False
        if own in self._reads and self._rng.random() < 0.5:
            return None, own, meant, True
        return self._failed("busy", self._rng.choice(BUSY)), "", {}, False

    def _failed(self, outcome: str, why: str) -> str:
        self.outcomes[outcome] += 1
        return f"error: {why}"

    def _result(self, message: Message, lost: bool) -> str:
        if lost:
            return self._failed("lost", self._rng.choice(LOST))
        text = str(message["content"])
        self.outcomes["refused" if text.startswith("error: ") else "success"] += 1
        return self._variant.outward(text)
