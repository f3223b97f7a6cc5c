"""Questions put to an engine, several times each, and judged."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Any

from flax import nnx

from posttrain_jax.chat.format import Chat
from posttrain_jax.parallel import exchange
from posttrain_jax.rewards.verdict import Verdict
from posttrain_jax.rollout import thinking as budgets
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Completion, Request
from posttrain_jax.stages.benchmarks.question import Question

GRADING = 4  # answers that are judged at once
Thinking = bool | int  # whether to think; a number: at most so many tokens


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer, judged.

    Attributes:
      text: what was written, thinking included.
      message: what it stands for; without content and calls if it was cut off.
      verdict: the grader's.
      finish: why it ended.
      tokens: how long it is.
    """

    text: str
    message: dict[str, Any]
    verdict: Verdict
    finish: str
    tokens: int


def answer(
    engine: Engine,
    weights: nnx.State,
    chat: Chat,
    questions: Sequence[Question],
    *,
    system: str | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    thinking: Thinking = True,
) -> list[list[Answer]]:
    """``samples`` answers to each question; none to one that is longer than the engine's prompts.

    Args:
      system: message before every question that brings none; None adds none.
      temperature: 0 is greedy.
      thinking: see `Thinking`; what no thinking means is the family's decision.

    Raises:
      UserError: a budget of thinking that leaves no room for an answer.
      ChatError: a budget, and the family writes no thinking.
    """
    thinks = thinking is not False
    prompts = [_prompt(chat, question, system, thinks) for question in questions]
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= engine.limits.max_prompt]
    requests = [
        Request(prompts[i], i * samples + sample, engine.limits.max_response, temperature)
        for i in fitting
        for sample in range(samples)
    ]
    if isinstance(thinking, bool):
        completions = engine.complete(weights, requests)
    else:
        completions = budgets.complete(engine, weights, chat, requests, thinking)
    asked = [questions[i] for i in fitting for _ in range(samples)]

    def judged(chosen: Sequence[int]) -> list[Answer]:
        with concurrent.futures.ThreadPoolExecutor(GRADING) as threads:
            return list(threads.map(lambda n: _judged(chat, asked[n], completions[n], thinks), chosen))

    answers = exchange.spread(range(len(asked)), judged)
    found: list[list[Answer]] = [[] for _ in questions]
    for place, i in enumerate(fitting):
        found[i] = answers[place * samples : (place + 1) * samples]
    return found


def sample(question: Question, answer: Answer, thinking: str) -> dict[str, Any]:
    """An answer as it is written down."""
    return {
        "benchmark": question.benchmark,
        "subset": question.subset,
        "question": question.name,
        "thinking": thinking,
        "prompt": question.messages[-1].get("content"),
        "response": answer.text,
        "answer": answer.verdict.answer,
        "expected": question.expected,
        "correct": answer.verdict.correct,
        "reward": answer.verdict.reward,
        "reason": answer.verdict.reason,
        "errors": answer.message.get("errors", []),
        "finish": answer.finish,
        "tokens": answer.tokens,
    }


def _prompt(chat: Chat, question: Question, system: str | None, thinks: bool) -> list[int]:
    own = question.messages[0].get("role") == "system"
    before = [] if own or system is None else [{"role": "system", "content": system}]
    return chat.encode([*before, *question.messages], question.tools, thinks, add_generation_prompt=True)[0]


def _judged(chat: Chat, question: Question, completion: Completion, thinks: bool) -> Answer:
    text = chat.tokenizer.decode([int(token) for token in completion.tokens])
    message = chat.parse(text, question.tools, thinks)
    if completion.finish != "stop":
        message = {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": ""}
    return Answer(text, message, question.grade(message), completion.finish, len(completion.tokens))
