"""Questions answered and judged, and what is said of them."""

import types

import numpy as np
import pytest

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.rewards.verdict import broken, judged
from posttrain_jax.rollout.request import Completion
from posttrain_jax.stages.answering import prompt_tokens
from posttrain_jax.stages.benchmarks import answering, scores
from posttrain_jax.stages.benchmarks.question import Question, content, user

TOOL = {
    "type": "function",
    "function": {"name": "go", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}},
}


@pytest.fixture(scope="module")
def chat():
    return chats.for_family("minimax_m2", tokenizer=tokenizers.load("tiny"))


class Scripted:
    """Answers request n with ``texts[n]``; None: cut off."""

    def __init__(self, chat, texts, max_prompt=10_000):
        self.chat, self.texts, self.asked = chat, texts, []
        self.limits = types.SimpleNamespace(max_prompt=max_prompt, max_response=40)

    def complete(self, weights, requests):
        self.asked += requests
        return [self.answer(self.texts[request.seed]) for request in requests]

    def answer(self, text):
        tokens = self.chat.tokenizer.encode_with_specials(text or "so</think>\n\n2 and on and on")
        tokens = [*tokens, self.chat.stop_tokens[0]] if text else tokens
        return Completion(np.array(tokens, np.int32), np.zeros(len(tokens), np.float32), "stop" if text else "length")


def question(number, subset="all", benchmark="sums", tools=(), grade=None):
    grade = grade or (lambda message: judged(content(message) == "2", "not 2", content(message)))
    return Question(benchmark, subset, str(number), user(f"question {number}"), grade, list(tools))


def run(chat, questions, texts, samples=1, **options):
    engine = Scripted(chat, texts, **{k: options.pop(k) for k in ("max_prompt",) if k in options})
    answers = answering.answer(engine, None, chat, questions, samples=samples, **options)
    return answers, scores.scores(questions, answers, samples, "on"), engine


RIGHT, WRONG = "so</think>\n\n2", "so</think>\n\n3"


def test_shares_are_of_questions_and_pass_at_k_of_their_samples(chat):
    answers, [found], engine = run(chat, [question(0), question(1)], [RIGHT, WRONG, RIGHT, RIGHT], 2, temperature=1.0)
    assert [[a.verdict.correct for a in each] for each in answers] == [[True, False], [True, True]]
    assert {k: share.value for k, share in found.pass_at.items()} == {"pass@1": 0.75, "pass@2": 1.0}
    assert found.average["avg@2"] == found.pass_at["pass@1"] and found.questions == 2 and found.reward == 0.75
    assert found.tokens == np.mean([answer.tokens for each in answers for answer in each])
    assert [request.seed for request in engine.asked] == [0, 1, 2, 3]


def test_subsets_stand_behind_their_benchmark(chat):
    asked = [question(0, "easy"), question(1, "hard"), question(2, benchmark="other")]
    _, found, _ = run(chat, asked, [RIGHT, WRONG, RIGHT])
    assert [(s.benchmark, s.subset, s.questions, s.pass_at["pass@1"].value) for s in found] == [
        ("sums", "", 2, 0.5),
        ("sums", "easy", 1, 1.0),
        ("sums", "hard", 1, 0.0),
        ("other", "all", 1, 1.0),
    ]
    assert "sums easy" in scores.table(found) and "100.0%" in scores.table(found)


def test_an_answer_that_is_cut_off_is_empty(chat):
    [[cut]], [found], _ = run(chat, [question(0)], [None])
    assert cut.message["content"] == "" and not cut.verdict.correct and found.cut_off == 1.0


def test_thinking_is_left_out_where_it_is_off(chat):
    [[answer]], _, engine = run(chat, [question(0)], ["2"], thinking=False)
    assert answer.verdict.correct
    assert chat.tokenizer.decode(engine.asked[0].prompt).endswith("<think>\n\n</think>\n\n")


def test_a_question_is_asked_as_in_training_behind_the_system_message(chat):
    own = [{"role": "system", "content": "own"}, *user("x")]
    brings = Question("sums", "all", "1", own, lambda message: judged(True, "", ""))
    _, _, engine = run(chat, [question(0), brings], [RIGHT, RIGHT], system="Think.")
    assert list(engine.asked[0].prompt) == prompt_tokens(chat, "Think.", "question 0")
    assert "own" in (said := chat.tokenizer.decode(engine.asked[1].prompt)) and "Think." not in said


def test_calls_that_fit_their_tools_are_counted_and_markup_that_breaks_is_bad_form(chat):
    call = (
        '<minimax:tool_call>\n<invoke name="{}">\n<parameter name="to">x</parameter>\n</invoke>\n</minimax:tool_call>'
    )
    texts = ["so</think>\n\n" + call.format("go"), "so</think>\n\n" + call.format("fly"), "so</think>\n\n" + call[:30]]
    asked = [question(n, tools=[TOOL]) for n in range(3)]
    answers, [found], _ = run(chat, asked, texts)
    assert answers[0][0].message["tool_calls"][0]["function"] == {"name": "go", "arguments": {"to": "x"}}
    assert found.valid_calls == 0.5 and found.format_errors == pytest.approx(1 / 3)


def test_what_was_not_asked_or_not_graded_counts_as_wrong_and_is_said(chat):
    failing = question(1, grade=lambda message: broken("the grader died"))
    long = Question("sums", "all", "2", user("long " * 400), lambda message: judged(True, "", ""))
    _, [found], engine = run(chat, [question(0), failing, long], [RIGHT] * 3, max_prompt=200)
    assert (found.ungraded, found.too_long, len(engine.asked)) == (1, 1, 2)
    assert found.pass_at["pass@1"].value == pytest.approx(1 / 3)
    assert "1 questions too long" in scores.table([found]) and "1 answers ungraded" in scores.table([found])


@pytest.mark.parametrize(
    "share, count, low, high", [(0.0, 10, 0.0, 0.2775), (0.5, 100, 0.4038, 0.5962), (1, 50, 0.9287, 1)]
)
def test_the_interval_is_wilsons(share, count, low, high):
    found = scores.wilson(share, count)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_the_interval_holds_the_truth_nineteen_times_of_twenty():
    draws = np.random.default_rng(0).binomial(40, 0.3, 2000) / 40
    held = [(s := scores.wilson(float(share), 40)).low <= 0.3 <= s.high for share in draws]
    assert 0.93 < np.mean(held) < 0.97
