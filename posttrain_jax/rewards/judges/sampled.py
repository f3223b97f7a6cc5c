"""A judge that is sampled: the policy itself, or any other model behind a `Sampler`."""

from __future__ import annotations

from typing import Any

from posttrain_jax.chat.format import Chat
from posttrain_jax.rewards.judges.judge import Prompted
from posttrain_jax.rollout.request import Request, Sampler


def sampled(
    sampler: Sampler,
    chat: Chat,
    *,
    max_prompt: int,
    max_tokens: int,
    temperature: float = 0.0,
    thinking: bool = True,
) -> Prompted:
    """A judge that speaks through a sampler in its chat's format.

    A question longer than ``max_prompt`` tokens is not asked, and an answer cut off at ``max_tokens`` is not read: both
    count as no verdict, since they come of what was judged.
    """

    async def ask(messages: list[dict[str, Any]], seed: int) -> str:
        prompt, _ = chat.encode(messages, None, thinking, add_generation_prompt=True)
        if len(prompt) > max_prompt:
            return ""
        completion = await sampler.complete(Request(tuple(prompt), seed, max_tokens, temperature))
        if completion.finish != "stop":
            return ""
        return chat.parse(chat.tokenizer.decode(completion.tokens.tolist()), None, thinking)["content"]

    return Prompted(ask)
