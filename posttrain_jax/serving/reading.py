"""Bodies of HTTP requests into requests to the engine, every field checked."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain_jax.chat.format import Chat
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Request
from posttrain_jax.serving.errors import Refused

MOST_CHOICES = 1024
# What the engine does not do, with the values that ask for nothing.
INERT: dict[str, tuple] = {
    "stop": (None, "", []),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "auto"),
    "top_logprobs": (None, 0),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a client wants.

    Attributes:
      prompts: tokens of each prompt.
      requests: to the engine, ``choices`` for each prompt.
      stream: whether answers go out as they are written.
      usage: whether a stream ends with the counts of tokens.
      logprobs, ids: whether log-probabilities and token ids are told.
      tools, thinking: how a chat's answer is read; a plain completion has neither.
    """

    prompts: list[list[int]]
    requests: list[Request]
    stream: bool
    usage: bool
    logprobs: bool
    ids: bool
    tools: Sequence[Mapping[str, Any]] = ()
    thinking: bool = True


def read_chat(body: Any, chat: Chat, engine: Engine) -> Asked:
    """A body of ``/v1/chat/completions``.

    Raises:
      Refused: a field is missing, malformed, or asks what the engine does not do.
      ChatError: messages that the format cannot write.
    """
    fields = Fields(body)
    messages = fields.take("messages", list)
    if not messages:
        raise Refused("messages is empty", "messages")
    if fields.take("tool_choice", str, "auto") == "none":
        fields = Fields({**body, "tools": None, "tool_choice": None})
    tools = fields.take("tools", list, [])
    thinking = Fields(fields.take("chat_template_kwargs", dict, {})).take("enable_thinking", bool, True)
    prompt = chat.encode(messages, tools, thinking, add_generation_prompt=True)[0]
    logprobs = fields.take("logprobs", bool, False)
    return dataclasses.replace(_asked(fields, [prompt], engine, logprobs), tools=tools, thinking=thinking)


def read_completion(body: Any, chat: Chat, engine: Engine) -> Asked:
    """A body of ``/v1/completions``: a prompt, or several, as text or token ids. Text is ordinary, whatever it says.

    Raises:
      Refused: as `read_chat`.
    """
    fields = Fields(body)
    given = fields.take("prompt", (str, list))
    several = isinstance(given, list) and bool(given) and isinstance(given[0], str | list)
    prompts = [_tokens(prompt, chat, engine.arch.vocab) for prompt in (given if several else [given])]
    logprobs = fields.take("logprobs", int, None)
    if logprobs not in (None, 0, 1):
        raise Refused(f"logprobs={logprobs}: only those of the sampled tokens are known; set 0", "logprobs")
    return _asked(fields, prompts, engine, logprobs is not None)


class Fields:
    """The fields of a body; null is the same as absent."""

    def __init__(self, body: Any):
        if not isinstance(body, Mapping):
            raise Refused(f"the body is {type(body).__name__}; expected a JSON object")
        self._body = body

    def take(self, name: str, kind: type | tuple[type, ...], *default: Any) -> Any:
        """A field of a type, or the default; without one the field must be there.

        Raises:
          Refused: absent without a default, or of another type.
        """
        value = self._body.get(name)
        if value is None:
            if not default:
                raise Refused(f"{name} is missing", name)
            return default[0]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(each.__name__ for each in kinds)
            raise Refused(f"{name}={value!r:.80} is {type(value).__name__}; expected {names}", name)
        return value

    def number(self, name: str, kind: type | tuple[type, ...], default: Any, least: float, most: float) -> Any:
        """A number within bounds.

        Raises:
          Refused: as `take`, or out of bounds.
        """
        value = self.take(name, kind, default)
        if value is not default and not least <= value <= most:  # not a number fails it as well
            raise Refused(f"{name}={value}: expected {least} to {most}", name)
        return value


def choice_seed(seed: int, choice: int) -> int:
    """The seed of a prompt's choice: the first has the client's own."""
    return int(np.random.SeedSequence([seed, choice]).generate_state(1)[0]) if choice else seed


def _asked(fields: Fields, prompts: list[list[int]], engine: Engine, logprobs: bool) -> Asked:
    limits = engine.limits
    fixed: dict[str, tuple] = {**INERT, "top_p": (None, limits.top_p), "top_k": (None, limits.top_k, -1)}
    if limits.top_k:
        fixed["top_k"] = (None, limits.top_k)
    for name, values in fixed.items():
        value = fields.take(name, (object, bool), None)
        if value not in values:
            raise Refused(f"{name}={value!r:.80} is not supported; the server does {values[-1]!r}", name)
    longest = fields.number("max_tokens", int, limits.max_response, 1, math.inf)
    longest = fields.number("max_completion_tokens", int, longest, 1, math.inf)
    temperature = float(fields.number("temperature", (int, float), 1.0, 0, 1e6))
    seed = fields.number("seed", int, None, 0, 2**32 - 1)
    seed = secrets.randbits(32) if seed is None else seed
    choices = fields.number("n", int, 1, 1, MOST_CHOICES)
    seeds = [choice_seed(seed, choice) for choice in range(choices)]
    requests = [Request(prompt, each, longest, temperature) for prompt in prompts for each in seeds]
    for request in requests[::choices]:
        try:
            engine.check(request)
        except ValueError as error:
            raise Refused(str(error), code="context_length_exceeded" if request.prompt else None) from error
    stream = fields.take("stream", bool, False)
    usage = Fields(fields.take("stream_options", dict, {})).take("include_usage", bool, False)
    return Asked(prompts, requests, stream, usage, logprobs, fields.take("return_token_ids", bool, False))


def _tokens(prompt: Any, chat: Chat, vocab: int) -> list[int]:
    if isinstance(prompt, str):
        return chat.tokenizer.encode(prompt)
    if not isinstance(prompt, list):
        raise Refused(f"prompt {prompt!r:.80} is neither text nor a list of token ids", "prompt")
    for place, token in enumerate(prompt):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab:
            raise Refused(f"token {place} of the prompt is {token!r:.80}; expected an id of 0 to {vocab - 1}", "prompt")
    return prompt
