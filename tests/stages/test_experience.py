"""Collecting experience with an engine whose answers are known."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.data import tasks
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.verdict import broken, right, wrong
from posttrain_jax.rollout.request import Completion
from posttrain_jax.run.recipe import RL, Tasks
from posttrain_jax.stages import answering
from posttrain_jax.stages.answering import answered, prompt_tokens
from posttrain_jax.stages.collecting import collect
from posttrain_jax.stages.experience import sample, statistics

NAMES = ("chain_sum", "gcd")
QUESTIONS = Tasks(names=NAMES, system="", seed=7)
SETTINGS = RL(prompts=3, group_size=4, max_rounds=3, format_reward=0.1, overlong_buffer=0, overlong_penalty=0.5)


@pytest.fixture(scope="module")
def chat():
    return chats.for_family("minimax_m2", tokenizer=tokenizers.load("tiny"))


class FakeEngine:
    """Answers with what ``script(call, prompt, sample)`` says: text, or text and a reason to end."""

    def __init__(self, chat, script, max_prompt=10_000, max_response=200):
        self.chat, self.script, self.calls = chat, script, []
        self.limits = types.SimpleNamespace(max_prompt=max_prompt, max_response=max_response)

    def generate(self, weights, prompts, key, *, samples, temperature):
        call = len(self.calls)
        self.calls.append((list(prompts), key, temperature))
        return [[self.completion(self.script(call, i, s)) for s in range(samples)] for i in range(len(prompts))]

    def completion(self, said):
        text, finish = said if isinstance(said, tuple) else (said, "stop")
        tokens = self.chat.tokenizer.encode_with_specials(text)
        tokens += [self.chat.stop_tokens[0]] if finish == "stop" else []
        return Completion(np.array(tokens, np.int32), np.full(len(tokens), -0.5, np.float32), finish)


def gather(chat, script, settings=SETTINGS, **limits):
    engine = FakeEngine(chat, script, **limits)
    curriculum = Curriculum(NAMES, 0, 0.8, seed=0)
    found = collect(settings, QUESTIONS, engine, None, chat, curriculum, jax.random.key(0), draws=5)
    return found, engine, curriculum


def well_formed(text):
    return f"thinking</think>\n\n{text}"


def mixed(call, prompt, sample):
    return well_formed("no number") if sample else "no end of thinking"


def alike(call, prompt, sample):
    return well_formed("no number")


def test_groups_with_different_rewards_are_taken_at_once(chat):
    found, engine, _ = gather(chat, mixed)
    assert (found.rounds, len(found.groups), len(found.everything), found.draws) == (1, 3, 12, 8)
    for group in found.groups:
        assert [t.reward for t in group] == pytest.approx([0.0, 0.1, 0.1, 0.1])
        assert len({t.problem.question for t in group}) == 1
    assert [len(prompts) for prompts, _, _ in engine.calls] == [3]


def test_groups_without_variance_are_dropped_and_refilled(chat):
    found, engine, curriculum = gather(chat, lambda call, prompt, s: (mixed if prompt == 0 else alike)(call, prompt, s))
    assert [len(prompts) for prompts, _, _ in engine.calls] == [3, 2, 1]
    assert (found.rounds, len(found.groups), len(found.everything), found.draws) == (3, 3, 24, 11)
    keys = [tuple(jax.random.key_data(key).tolist()) for _, key, _ in engine.calls]
    assert len(set(keys)) == 3, "every round draws anew"
    assert sum(counts[0] for counts in curriculum.counts.values()) == 6, "the curriculum sees dropped groups too"
    asked = [tuple(prompt) for prompts, _, _ in engine.calls for prompt in prompts]
    expected = [
        tuple(prompt_tokens(chat, "", tasks.problem(t.problem.task, 0, t.problem.index, seed=7).question))
        for t in found.everything[::4]
    ]
    assert asked == expected and [t.problem.index for t in found.everything[::4]] == list(range(5, 11))


def test_it_gives_up_after_the_last_round(chat):
    found, engine, _ = gather(chat, alike)
    assert (found.rounds, found.groups, len(engine.calls)) == (3, [], 3)
    numbers = statistics(found)
    assert numbers["groups"] == 0 and numbers["reward"] == pytest.approx(0.1) and numbers["well_formed"] == 1.0


def test_every_area_that_was_asked_has_numbers_of_its_own(chat):
    found, _, _ = gather(chat, lambda c, p, s: well_formed("12"))
    arithmetic = dataclasses.replace(found.everything[0].problem, task="gcd")
    logic = dataclasses.replace(found.everything[0].problem, task="aiw")
    world = dataclasses.replace(found.everything[0].problem, task="shop")
    everything = [
        dataclasses.replace(found.everything[0], problem=problem, reward=reward)
        for problem, reward in ((arithmetic, 1.0), (arithmetic, 0.0), (logic, 0.25), (world, 0.75))
    ]
    numbers = statistics(dataclasses.replace(found, everything=everything))
    assert {k: v for k, v in numbers.items() if k.startswith("reward/")} == {
        "reward/arithmetic": 0.5,
        "reward/logic": 0.25,
        "reward/shop": 0.75,
    }
    assert "reward/algebra" not in numbers and {"pass_rate/logic", "response_length/shop"} <= numbers.keys()


def test_the_overlong_penalty_alone_makes_a_difference(chat):
    settings = dataclasses.replace(SETTINGS, overlong_buffer=8, format_reward=0.0)
    found, _, _ = gather(chat, lambda c, p, s: well_formed("no number " * (1 + s)), settings, max_response=40)
    assert len(found.groups) == 3
    for group in found.groups:
        for one in group:
            over = (len(one.completion.tokens) - 32) / 8
            assert one.reward == pytest.approx(-0.5 * min(max(over, 0.0), 1.0))
            assert one.verdict.reward == 0.0, "the verdict knows nothing of length"


def test_right_answers_are_paid(chat):
    answers = {}

    class Knowing(FakeEngine):
        def generate(self, weights, prompts, key, *, samples, temperature):
            texts = [answers[tuple(prompt)] for prompt in prompts]
            return [[self.completion(well_formed(text if s else "wrong")) for s in range(samples)] for text in texts]

    for name in NAMES:
        for index in range(5, 20):
            problem = tasks.problem(name, 0, index, seed=7)
            answers[tuple(prompt_tokens(chat, "", problem.question))] = problem.answer
    curriculum = Curriculum(NAMES, 0, 0.8, seed=0)
    found = collect(SETTINGS, QUESTIONS, Knowing(chat, None), None, chat, curriculum, jax.random.key(0), draws=5)
    assert [[t.reward for t in group] for group in found.groups] == [[0.1, 1.0, 1.0, 1.0]] * 3
    assert statistics(found)["pass_rate"] == 0.75
    assert all(rate[0] > 0.5 for name, rate in curriculum.rates.items() if curriculum.counts[name][0])
    written = sample(chat, found.groups[0][1])
    assert written["correct"] and written["answer"] == written["expected"] and written["reasoning"] == "thinking"
    assert written["tokens"] == len(found.groups[0][1].completion.tokens) and written["stage"] == "rl"


def test_prompts_that_are_too_long_are_passed_over(chat):
    sizes = {i: None for i in range(40)}
    curriculum = Curriculum(NAMES, 0, 0.8, seed=0)
    for draw in sizes:
        problem = tasks.problem(*curriculum.choose(draw), seed=7)
        sizes[draw] = len(prompt_tokens(chat, "", problem.question))
    limit = sorted(sizes.values())[len(sizes) // 2]
    found, engine, _ = gather(chat, mixed, max_prompt=limit)
    assert all(len(prompt) <= limit for prompts, _, _ in engine.calls for prompt in prompts)
    fitting = [draw for draw in range(5, 40) if sizes[draw] <= limit][:3]
    assert [group[0].problem.index for group in found.groups] == fitting
    assert found.draws == fitting[-1] + 1


def test_prompts_that_never_fit_are_told(chat):
    with pytest.raises(UserError, match="longer than rollout.max_prompt=3.*set rollout.max_prompt higher"):
        gather(chat, mixed, max_prompt=3)


@pytest.mark.parametrize("finish", ["length", "repetition"])
def test_a_response_that_was_cut_off_has_no_answer(chat, finish):
    engine = FakeEngine(chat, None)
    whole, cut = (engine.completion((well_formed("12"), reason)) for reason in ("stop", finish))
    assert answered(chat, whole)["content"].strip() == "12"
    assert answered(chat, cut)["content"] == "" and answered(chat, cut)["reasoning_content"] == "thinking"
    found, _, _ = gather(chat, lambda c, p, s: (well_formed("no number"), finish if s else "stop"))
    numbers = statistics(found)
    assert [t.reward for t in found.groups[0]] == pytest.approx([0.1, 0.0, 0.0, 0.0])
    assert numbers["cut_off" if finish == "length" else "repeating"] == 0.75 and numbers["well_formed"] == 0.25


def test_what_could_not_be_graded_is_never_trained_on(chat, monkeypatch):
    """The grader fails on every answer of the second sample, and the curriculum hears nothing of them."""
    calls = []

    def judged(problem, message, *, format_reward):
        calls.append(message)
        number = (len(calls) - 1) % SETTINGS.group_size
        return broken("the sandbox failed") if number == 1 else right("") if number == 2 else wrong("")

    monkeypatch.setattr(answering, "verify", judged)
    found, _, curriculum = gather(chat, lambda c, p, s: well_formed("12"))
    assert [[t.reward for t in group] for group in found.groups] == [[0.0, 1.0, 0.0]] * 3
    assert len(found.everything) == 9 and not any(t.verdict.infrastructure for t in found.everything)
    assert statistics(found)["ungraded"] == 3 and statistics(found)["pass_rate"] == pytest.approx(1 / 3)


def test_a_grader_that_always_fails_is_told(chat, monkeypatch):
    monkeypatch.setattr(answering, "verify", lambda *_, format_reward: broken("no space left"))
    with pytest.raises(UserError, match="not one of .* could be graded: no space left"):
        gather(chat, mixed)


def test_a_solved_canary_is_an_alarm_and_is_not_trained_on(chat, monkeypatch):
    drawn = tasks.problem

    def problem(*chosen, **options):
        return dataclasses.replace(drawn(*chosen, **options), canary=True)

    monkeypatch.setattr(tasks, "problem", problem)
    monkeypatch.setattr(
        answering, "verify", lambda p, m, *, format_reward: right("") if "hack" in str(m) else wrong("")
    )
    found, _, curriculum = gather(chat, lambda c, p, s: well_formed("hack" if s == 2 else "honest"))
    assert found.groups == [] and not any(curriculum.counts[name][0] for name in NAMES)
    assert statistics(found)["hacked"] == len(found.hacked) == 9
    assert all(sample(chat, t)["canary"] and "hack" in sample(chat, t)["response"] for t in found.hacked)
