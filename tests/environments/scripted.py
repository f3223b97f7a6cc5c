"""A sampler whose answers are written beforehand, as the tokens that a family would sample them in."""

from __future__ import annotations

import asyncio

import numpy as np

from posttrain_jax.rollout.request import Completion


def call(name, id=None, /, **arguments):
    function = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return function if id is None else {"id": id, **function}


def answer(content="", *calls, thought="t"):
    message = {"role": "assistant", "content": content, "reasoning_content": thought}
    return message | ({"tool_calls": list(calls)} if calls else {})


def tokens_of(chat, message, thinking=True):
    """The tokens that an answer is sampled in, its stop token last."""
    before = [{"role": "user", "content": ""}]
    start = len(chat.encode(before, None, thinking, add_generation_prompt=True)[0])
    tokens, mask = chat.encode([*before, message], None, thinking)
    return tokens[start : max(i for i, trained in enumerate(mask) if trained) + 1]


class Scripted:
    """Answers by what a policy, a function of the prompt's text and the request, says: a message, or tokens.

    Log-probabilities and versions are functions of seed and place, so that a test can tell where each came from.
    """

    def __init__(self, chat, policy):
        self.chat, self.policy = chat, policy
        self.requests, self.running, self.most = [], 0, 0

    async def complete(self, request):
        self.requests.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        said = self.policy(self.chat.tokenizer.decode(request.prompt), request)
        tokens = tokens_of(self.chat, said) if isinstance(said, dict) else said
        finish = "stop" if len(tokens) <= request.max_tokens else "length"
        tokens = np.asarray(tokens[: request.max_tokens], np.int32)
        self.running -= 1
        noise = np.random.default_rng(request.seed).uniform(-3, 0, len(tokens)).astype(np.float32)
        return Completion(tokens, noise, finish, versions=np.full(len(tokens), len(self.requests), np.int32))
