"""A budget of thinking: after so many tokens the thinking is closed, in the family's own tokens, and sampling goes on.

It needs nothing of an engine: a second request continues from the thinking as far as it came.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import xxhash
from flax import nnx

from posttrain_jax.chat.format import Chat
from posttrain_jax.errors import UserError
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Completion, Request


def complete(
    engine: Engine, weights: nnx.State, chat: Chat, requests: Sequence[Request], budget: int
) -> list[Completion]:
    """Answers each request with at most ``budget`` tokens of thinking.

    Thinking that is not over by then is closed: the tokens of `Chat.thinking_marks` follow with log-probability 0, for
    they were not drawn. An answer that does not think, or no longer does, just goes on. All tokens count towards
    ``max_tokens``.

    Raises:
      UserError: the budget leaves no room for an answer.
      ChatError: the family writes no thinking.
    """
    opening, ending, closing = chat.thinking_marks()
    for request in requests:
        most = request.max_tokens - len(closing) - 1
        if not 1 <= budget <= most:
            raise UserError(
                f"a thinking budget of {budget} tokens, of {request.max_tokens} in all: the nearest is "
                f"{min(max(budget, 1), most)}"
            )
    begun = engine.complete(weights, [dataclasses.replace(request, max_tokens=budget) for request in requests])
    heads: list[list[int]] = []
    for request, first in zip(requests, begun, strict=True):
        said = chat.tokenizer.decode([int(token) for token in first.tokens])
        before = chat.tokenizer.decode([int(token) for token in request.prompt[-8:]])
        thinks = before.rstrip().endswith(opening) or said.lstrip().startswith(opening)
        heads.append([*first.tokens.tolist(), *(closing if thinks and ending not in said else ())])
    cut = [i for i, first in enumerate(begun) if first.finish == "length"]
    further = engine.complete(weights, [_onward(requests[i], heads[i]) for i in cut])
    answers = list(begun)
    for i, then in zip(cut, further, strict=True):
        answers[i] = _joined(begun[i], heads[i], then)
    return answers


def _onward(request: Request, head: list[int]) -> Request:
    """The request for what follows ``head``, with draws of its own."""
    seed = xxhash.xxh32_intdigest(f"{request.seed}/onward".encode())
    rest = request.max_tokens - len(head)
    return dataclasses.replace(request, prompt=[*request.prompt, *head], seed=seed, max_tokens=rest)


def _joined(first: Completion, head: list[int], then: Completion) -> Completion:
    forced = np.zeros(len(head) - len(first.tokens), np.float32)
    return Completion(
        np.concatenate([np.array(head, np.int32), then.tokens]),
        np.concatenate([first.logprobs, forced, then.logprobs]),
        then.finish,
        first.drafted + then.drafted,
        first.kept + then.kept,
    )
