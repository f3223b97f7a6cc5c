"""A model as EleutherAI's lm-evaluation-harness asks it: generated text, and log-probabilities of given text.

The harness is a large package and is imported when its class is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posttrain_jax.chat.format import Chat, ChatError
from posttrain_jax.errors import UserError
from posttrain_jax.models.decoder import Decoder
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Request


class Asked:
    """What the harness calls; each request has its ``args``.

    Raises:
      UserError: the engine lies on several devices, where log-probabilities would need its mesh.
    """

    def __init__(self, engine: Engine, weights: nnx.State, chat: Chat, *, rows: int = 8, system: str = ""):
        """``rows`` texts are scored at once; ``system`` is the message before conversations that bring none."""
        super().__init__()
        if engine.sharded:
            raise UserError("lm-evaluation-harness works with rollout.sharded=False alone")
        self._engine, self._weights, self._chat, self._rows, self._system = engine, weights, chat, rows, system
        self._length = engine.limits.positions
        self._score = jax.jit(_scorer(engine))

    @property
    def tokenizer_name(self) -> str:
        """What the harness's caches call the chat template."""
        return type(self._chat.format).__module__

    def chat_template(self, chat_template: Any = False) -> str:
        """Which template is used: the family's only one."""
        return self.tokenizer_name

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        """The conversation as the family writes it, thinking left out."""
        own = bool(chat_history) and chat_history[0].get("role") == "system"
        before = [{"role": "system", "content": self._system}] if self._system and not own else []
        messages = [*before, *chat_history]
        return self._chat.render(messages, thinking=False, add_generation_prompt=add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of ``(context, continuation)``: log-probability in nats, and whether it is the greedy continuation.

        The context is cut on its left where both are longer than the engine's positions.
        """
        return self._scored([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of ``(text,)``: log-probability of all of it, in windows that do not overlap."""
        texts = [self._encoded(request.args[0]) for request in requests]
        room = self._length - 1
        starts = [(i, text, at) for i, text in enumerate(texts) for at in range(0, len(text), room)]
        windows = [(i, text[at : at + room], text[max(0, at - 1) : at]) for i, text, at in starts]
        scored = self._scored([(before or self._prefix(), window) for _, window, before in windows])
        totals = [0.0] * len(texts)
        for (i, _, _), (logprob, _) in zip(windows, scored, strict=True):
            totals[i] += logprob
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Of ``(context, settings)``: the text up to the first of ``settings["until"]``, behind any thinking."""
        limits = self._engine.limits
        asked = []
        for number, request in enumerate(requests):
            context, settings = request.args
            prompt = (self._encoded(context) or self._prefix())[-limits.max_prompt :]
            longest = min(int(settings.get("max_gen_toks", limits.max_response)), limits.max_response)
            heat = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
            asked.append(Request(prompt, number, longest, heat))
        answers = self._engine.complete(self._weights, asked)
        return [
            self._until([int(token) for token in answer.tokens], request.args[1].get("until") or ())
            for answer, request in zip(answers, requests, strict=True)
        ]

    def _until(self, tokens: list[int], ends: Sequence[str] | str) -> str:
        text = self._chat.tokenizer.decode([token for token in tokens if token not in self._chat.stop_tokens])
        try:
            text = text.rpartition(self._chat.thinking_marks()[1])[2]
        except ChatError:
            pass  # this family does not think
        for end in [ends] if isinstance(ends, str) else ends:
            text = text.partition(end)[0] if end else text
        return text

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, split where the context ends; spaces at its end belong to the continuation."""
        whole, cut = self._encoded(context + continuation), len(self._encoded(context.rstrip()))
        return whole[:cut] or self._prefix(), whole[cut:]

    def _encoded(self, text: str) -> list[int]:
        return self._chat.tokenizer.encode_with_specials(text)

    def _prefix(self) -> list[int]:
        return [self._chat.stop_tokens[0]]

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        for chosen in _batches(pairs, self._rows):
            tokens = np.zeros((self._rows, self._length), np.int32)
            for row, (context, continuation) in enumerate(chosen):
                text = [*context, *continuation][-self._length :]
                tokens[row, : len(text)] = text
            logprobs, greedy = map(np.asarray, self._score(self._weights, tokens))
            for row, (context, continuation) in enumerate(chosen):
                end = min(len(context) + len(continuation), self._length)
                own = slice(max(end - len(continuation), 1) - 1, end - 1)
                found.append((float(logprobs[row, own].sum(dtype=np.float64)), bool(greedy[row, own].all())))
        return found


def model(engine: Engine, weights: nnx.State, chat: Chat, *, rows: int = 8, system: str = "") -> Any:
    """An ``lm_eval.api.model.LM``, for ``lm_eval.simple_evaluate(model=...)``; see `Asked`.

    Raises:
      UserError: the harness is not installed, or what `Asked` finds.
    """
    try:
        from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"lm-evaluation-harness is not there ({error}): pip install lm-eval") from error
    return type("PosttrainJax", (Asked, LM), {})(engine, weights, chat, rows=rows, system=system)


def _batches(pairs: Sequence[Any], rows: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(pairs), rows):
        yield pairs[start : start + rows]


def _scorer(engine: Engine) -> Any:
    """Of each token but the first: its log-probability after those before, and whether it is the likeliest."""
    kind = engine.compute_dtype
    make = lambda: Decoder(engine.arch, rngs=nnx.Rngs(0), param_dtype=kind, compute_dtype=kind, scan=False)  # noqa: E731
    graph, _ = nnx.split(nnx.eval_shape(make))

    def score(
        weights: nnx.State, tokens: Int[Array, "rows length"]
    ) -> tuple[Float[Array, "rows rest"], Bool[Array, "rows rest"]]:
        decoder = nnx.merge(graph, weights)
        hidden = decoder.hidden(tokens)

        def one(row):  # a row at a time: logits are as wide as the vocabulary
            states, targets = row
            logits = decoder.logits(states[None])[0]
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], -1)[:, 0]
            return chosen, logits.argmax(-1) == targets

        return jax.lax.map(one, (hidden[:, :-1], tokens[:, 1:]))

    return score
