"""Who knows how: a world's solver acts by saying calls, and what it says becomes a demonstration."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from posttrain_jax.chat.format import Message
from posttrain_jax.environments.environment import Environment

ENDING = "that is all"  # the thought before the last words: a model that is prompted to think has to learn one


class Say(Protocol):
    """Says why, and calls tools; gives their results as text, none when the episode is over."""

    def __call__(self, reasoning: str, *calls: Message) -> Awaitable[list[str]]: ...


Solve = Callable[[str, Say], Awaitable[str | None]]
"""Does what is asked; returns the last words, None where the last call ends the episode."""


async def demonstrated(environment: Environment, solve: Solve, seed: int) -> dict[str, Any]:
    """An episode that is solved, as a record of `data.sources`: messages and tools."""
    observation = await environment.reset(seed)
    messages: list[Message] = [*observation.messages]

    async def say(reasoning: str, *calls: Message) -> list[str]:
        messages.append(spoken(reasoning, *calls))
        step = await environment.step(messages[-1])
        if step.done:
            return []  # nobody answers what comes last
        messages.extend(step.messages)
        return [str(message["content"]) for message in step.messages]

    words = await solve(str(messages[-1]["content"]), say)
    if words is not None:
        messages.append({"role": "assistant", "reasoning_content": ENDING, "content": words})
    await environment.close()
    return {"messages": messages, "tools": list(observation.tools)}


def spoken(reasoning: str, *calls: Message) -> Message:
    """An assistant's message that calls tools."""
    wrapped = [{"type": "function", "function": call} for call in calls]
    return {"role": "assistant", "content": "", "reasoning_content": reasoning, "tool_calls": wrapped}


def call(name: str, /, **arguments: Any) -> Message:
    """A call of a tool."""
    return {"name": name, "arguments": arguments}


def sentences(text: str) -> list[str]:
    """The wishes of a task that can be granted one after another."""
    return re.split(r"(?<=\.) (?=[A-Z])", text)


def matched(pattern: str, sentence: str) -> re.Match[str] | None:
    """A wish that reads like the pattern, its full stop left out."""
    return re.fullmatch(pattern, sentence.removesuffix("."))
