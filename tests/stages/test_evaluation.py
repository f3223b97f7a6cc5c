"""Held-out scores: the estimate of pass@k, and what counts as unsolved."""

import itertools
import types
from fractions import Fraction

import numpy as np
import pytest

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.data import tasks
from posttrain_jax.rollout.request import Completion
from posttrain_jax.stages.answering import prompt_tokens
from posttrain_jax.stages.evaluation import evaluate, pass_at


@pytest.mark.parametrize("tried", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(tried):
    for right, k in itertools.product(range(tried + 1), range(1, tried + 1)):
        draws = list(itertools.combinations([True] * right + [False] * (tried - right), k))
        assert pass_at(k, right, tried) == pytest.approx(float(Fraction(sum(map(any, draws)), len(draws))))


@pytest.fixture(scope="module")
def chat():
    return chats.for_family("minimax_m2", tokenizer=tokenizers.load("tiny"))


class Oracle:
    """Knows every answer; of ``samples`` answers to problem i it gives ``right(i)`` right ones."""

    def __init__(self, chat, problems, right, max_prompt=10_000):
        self.chat, self.limits = chat, types.SimpleNamespace(max_prompt=max_prompt)
        prompts = [tuple(prompt_tokens(chat, "", problem.question)) for problem in problems]
        self.known = {
            prompt: (i, problem.answer) for i, (prompt, problem) in enumerate(zip(prompts, problems, strict=True))
        }
        self.right, self.asked = right, []

    def generate(self, weights, prompts, key, *, samples, temperature):
        self.asked += [tuple(prompt) for prompt in prompts]
        return [[self.answer(tuple(prompt), sample) for sample in range(samples)] for prompt in prompts]

    def answer(self, prompt, sample):
        number, answer = self.known[prompt]
        text = f"so</think>\n\n{answer if sample < self.right(number) else 'no idea'}"
        tokens = [*self.chat.tokenizer.encode_with_specials(text), self.chat.stop_tokens[0]]
        return Completion(np.array(tokens, np.int32), np.zeros(len(tokens), np.float32), "stop")


PROBLEMS = tasks.heldout(("chain_sum", "gcd", "syllogism"), 1, 18, seed=3)


def test_greedy_scores_are_shares_of_problems(chat):
    oracle = Oracle(chat, PROBLEMS, right=lambda number: number % 3 == 0)
    score = evaluate(oracle, None, chat, PROBLEMS, system="")
    assert score.overall == pytest.approx(6 / 18) == score.pass_at["pass@1"]
    solved = [problem.task for number, problem in enumerate(PROBLEMS) if number % 3 == 0]
    for task, share in score.per_task.items():
        assert share == pytest.approx(solved.count(task) / [p.task for p in PROBLEMS].count(task))
    assert [t.verdict.correct for t in score.trajectories] == [number % 3 == 0 for number in range(18)]


def test_several_samples(chat):
    score = evaluate(Oracle(chat, PROBLEMS, right=lambda n: n % 5), None, chat, PROBLEMS, system="", samples=4)
    rights = [number % 5 for number in range(18)]
    assert set(score.pass_at) == {"pass@1", "pass@2", "pass@4"}
    assert score.overall == pytest.approx(sum(rights) / 72) == score.pass_at["pass@1"]
    assert score.pass_at["pass@4"] == pytest.approx(sum(right > 0 for right in rights) / 18)
    assert len(score.trajectories) == 72


def test_a_question_that_is_too_long_counts_as_unsolved(chat):
    sizes = [len(prompt_tokens(chat, "", problem.question)) for problem in PROBLEMS]
    limit = sorted(sizes)[len(sizes) // 2]
    fitting = [size <= limit for size in sizes]
    oracle = Oracle(chat, PROBLEMS, right=lambda number: 1, max_prompt=limit)
    score = evaluate(oracle, None, chat, PROBLEMS, system="")
    assert 0 < sum(fitting) < len(fitting)
    assert len(oracle.asked) == len(score.trajectories) == sum(fitting)
    assert score.overall == pytest.approx(sum(fitting) / len(fitting)) == score.pass_at["pass@1"]
    assert set(score.per_task) == {problem.task for problem in PROBLEMS}
    none = evaluate(Oracle(chat, PROBLEMS, None, max_prompt=1), None, chat, PROBLEMS, system="")
    assert none.overall == 0.0 and not none.trajectories
