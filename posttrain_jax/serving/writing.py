"""Completions of the engine as OpenAI's objects, with vLLM's names for token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain_jax.chat.format import Chat
from posttrain_jax.rollout.request import Completion
from posttrain_jax.serving.reading import Asked
from posttrain_jax.serving.unfolding import text_of

REASONS = {"stop": "stop", "length": "length", "repetition": "length"}


def read_message(chat: Chat, completion: Completion, asked: Asked, name: str) -> dict[str, Any]:
    """The assistant's message; ``name`` makes the ids of its calls, where the format has none."""
    message = chat.parse(text_of(chat, completion.tokens, final=True), asked.tools, asked.thinking)
    message.pop("errors", None)  # what is malformed stands in the content
    calls = [_call(call, f"call_{name}_{index}") for index, call in enumerate(message.get("tool_calls") or ())]
    return message | ({"tool_calls": calls} if calls else {})


def ending(completion: Completion, called: bool = False) -> dict[str, Any]:
    """Why an answer ended: OpenAI's word, and ours where it says more."""
    reason = REASONS[completion.finish]
    return {
        "finish_reason": "tool_calls" if called and reason == "stop" else reason,
        "stop_reason": completion.finish if completion.finish != reason else None,
    }


def details(
    asked: Asked, chat: Chat, tokens: np.ndarray, logprobs: np.ndarray, *, plain: bool, offset: int = 0
) -> dict[str, Any]:
    """Token ids and log-probabilities, as far as asked for; ``offset`` is where the text of the first begins."""
    told: dict[str, Any] = {"token_ids": tokens.tolist()} if asked.ids else {}
    if asked.logprobs:
        told["logprobs"] = (_plain if plain else _detailed)(chat, tokens.tolist(), logprobs.tolist(), offset)
    return told


def versions(asked: Asked, completion: Completion) -> dict[str, Any]:
    """The policy that drew each token, beside the token ids."""
    return {"policy_versions": completion.versions.tolist()} if asked.ids and completion.versions is not None else {}


def usage(asked: Asked, drawn: int) -> dict[str, int]:
    """Counts of tokens."""
    read = sum(map(len, asked.prompts))
    return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}


def event(data: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _call(call: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A call as it goes over the wire: with an id, and its arguments as JSON text."""
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {"id": call.get("id") or name, "type": "function", "function": {**function, "arguments": arguments}}


def _detailed(chat: Chat, tokens: Sequence[int], logprobs: Sequence[float], _: int) -> dict[str, Any]:
    """A chat's form."""
    spelled = [chat.tokenizer.decode_bytes([token]) for token in tokens]
    entries = [
        {"token": spelling.decode(errors="replace"), "logprob": logprob, "bytes": list(spelling), "top_logprobs": []}
        for spelling, logprob in zip(spelled, logprobs, strict=True)
    ]
    return {"content": entries}


def _plain(chat: Chat, tokens: Sequence[int], logprobs: Sequence[float], offset: int) -> dict[str, Any]:
    """A plain completion's form."""
    spelled = [chat.tokenizer.decode([token]) for token in tokens]
    offsets = (offset + np.cumsum([0, *map(len, spelled)])[:-1]).tolist()
    return {"tokens": spelled, "token_logprobs": list(logprobs), "top_logprobs": None, "text_offset": offsets}
