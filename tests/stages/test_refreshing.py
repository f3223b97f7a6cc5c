"""The critic's lessons within a step of reinforcement learning."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.data.tasks import Problem
from posttrain_jax.models.decoder import abstract, materialise
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.rewards.judges import rubrics
from posttrain_jax.rewards.judges.rubrics import compare_messages, verdict_line
from posttrain_jax.rewards.verdict import judged as verdict_of
from posttrain_jax.rollout.request import Completion
from posttrain_jax.run import validate
from posttrain_jax.run.recipe import RL, Judge
from posttrain_jax.stages import rl
from posttrain_jax.stages.experience import Experience, Trajectory
from posttrain_jax.stages.optimizing import make_optimizing
from posttrain_jax.stages.refreshing import Refresh, agreed
from posttrain_jax.stages.setup import make_chat, make_model
from posttrain_jax.stages.step import fresh_state

KEY = jax.random.key(5)
RIGHT, WRONG, STEPS = "77777777", "2", 40


@pytest.fixture(scope="module")
def chat():
    return chats.for_family("minimax_m2", tokenizer=tokenizers.load("tiny"))


def asked(name, canary=False):
    return Problem("gcd", 0, 0, f"What is {name}?", RIGHT, "", {}, canary)


def group_of(problem, *answers):
    completion = Completion(np.array([1, 2], np.int32), np.zeros(2, np.float32), "stop")
    verdicts = [verdict_of(answer == RIGHT, "another", answer) for answer in answers]
    return [Trajectory(problem, [1], completion, {}, verdict, verdict.reward) for verdict in verdicts]


class Always:
    """An engine that answers everything alike, one text a sample."""

    def __init__(self, chat, *said, max_prompt=10_000, temperature=1.0):
        self.chat, self.said, self.temperature = chat, said, temperature
        self.limits = types.SimpleNamespace(max_prompt=max_prompt)

    def load(self, weights):
        return weights

    def generate(self, weights, prompts, key, *, samples, temperature):
        assert samples == len(self.said) and temperature == self.temperature
        return [[self.completion(text) for text in self.said] for _ in prompts]

    def completion(self, text):
        tokens = [*self.chat.tokenizer.encode_with_specials(text), self.chat.stop_tokens[0]]
        return Completion(np.array(tokens, np.int32), np.full(len(tokens), -1.0, np.float32), "stop")


def refresh_of(chat, engine, pairs=9, **settings):
    judge = Judge(name="self_critique", refresh=pairs)
    return Refresh(RL(group_size=4, judge=judge, **settings), engine, chat, (), KEY)


def test_lessons_are_pairs_of_which_the_verifier_knows_the_better(chat):
    everything = [
        *group_of(asked("this"), RIGHT, "8", RIGHT),
        *group_of(asked("that"), RIGHT, RIGHT),
        *group_of(asked("nothing", canary=True), RIGHT, "8"),
        *group_of(asked("it"), "9", RIGHT),
    ]
    refresh = refresh_of(chat, Always(chat))
    found = refresh.lessons(everything, 3)
    expected = [
        (compare_messages(f"What is {name}?", *pair, ()), verdict)
        for name, other in (("this", "8"), ("it", "9"))
        for pair, verdict in (((RIGHT, other), 1), ((other, RIGHT), -1))
    ]
    assert sorted(map(repr, map(tuple, found))) == sorted(map(repr, expected))
    assert found == refresh.lessons(everything, 3)
    assert len(refresh_of(chat, Always(chat), pairs=1).lessons(everything, 3)) == 2
    assert refresh_of(chat, Always(chat, max_prompt=20)).lessons(everything, 3) == []


def test_a_verdict_is_rewarded_where_it_is_the_verifiers(chat):
    said = [f"so\n</think>\n\n{text}" for text in ("Verdict: A", "Verdict: B", "Verdict: tie", "A, surely")]
    refresh = refresh_of(chat, Always(chat, *said), format_reward=0.1)
    found = refresh.judged({}, refresh.lessons(group_of(asked("it"), RIGHT, "8"), 1), 1)
    assert [[t.reward for t in group] for group in found] == [[1.0, 0.1, 0.1, 0.0], [0.1, 1.0, 0.1, 0.0]]
    assert agreed(found) == 0.25
    assert all(t.problem.answer == verdict_line(v) for group, v in zip(found, (1, -1), strict=True) for t in group)


def test_where_the_temperature_moves_verdicts_are_sampled_at_the_steps_own(chat):
    refresh = refresh_of(chat, Always(chat, *["Verdict: A"] * 4, temperature=0.7))
    assert len(refresh.judged({}, refresh.lessons(group_of(asked("it"), RIGHT, "8"), 1), 1, 0.7)) == 2


def test_the_critic_is_shown_what_the_judge_reads_and_its_verdicts_are_the_newest_policys(chat):
    refresh = refresh_of(chat, Always(chat, *["Verdict: A"] * 4))
    refresh = dataclasses.replace(refresh, shown=lambda group: [f"all of it, {t.verdict.answer}" for t in group])
    asked_for = refresh.lessons(group_of(asked("it"), RIGHT, "8"), 1)
    assert asked_for[0].messages == compare_messages("What is it?", f"all of it, {RIGHT}", "all of it, 8", ())[:2]
    [group, _] = refresh.judged({}, asked_for, 3)
    for trajectory in group:
        [segment] = trajectory.segments
        assert (segment.versions[segment.sampled] == 2).all()


LENGTH = 128
TINY = {
    "model": dict(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, rotary_dim=8, experts=2, experts_per_token=1)
    | {"expert_ffn": 32, "max_length": LENGTH, "vocab": 640},
    "sft": {"length": LENGTH},
    "tasks": {"names": ("gcd",), "max_level": 0},
    "rollout": {"max_prompt": LENGTH - 16, "max_response": 16},
    "rl": dict(prompts=2, group_size=16, minibatches=1, length=LENGTH, microbatch_rows=8, overlong_buffer=0)
    | {"optimizer": dict(learning_rate=1e-3, warmup_steps=0, weight_decay=0.0, schedule="constant")}
    | {"judge": dict(name="self_critique", refresh=2, max_prompt=LENGTH - 16, max_response=16)},
}


class Choosing:
    """An engine whose policy says one of two things, as its weights weigh them: they need not learn to write first."""

    SAID = tuple(f"</think>\n\n{verdict_line(verdict)}" for verdict in (1, -1))

    def __init__(self, chat, graph):
        self.chat, self.limits = chat, types.SimpleNamespace(max_prompt=LENGTH - 16)
        self.said = [[*chat.tokenizer.encode_with_specials(text), chat.stop_tokens[0]] for text in self.SAID]
        self.logprobs = jax.jit(lambda weights, tokens: jax.nn.log_softmax(nnx.merge(graph, weights)(tokens)))

    def load(self, weights):
        return weights

    def generate(self, weights, prompts, key, *, samples, temperature):
        return [self.drawn(weights, p, jax.random.fold_in(key, i), samples) for i, p in enumerate(prompts)]

    def drawn(self, weights, prompt, key, samples):
        rows = np.array([np.pad([*prompt, *said], (0, LENGTH - len(prompt) - len(said))) for said in self.said])
        every = np.asarray(self.logprobs(weights, rows))
        found = [
            every[row, np.arange(len(prompt) - 1, len(prompt) + len(said) - 1), said]
            for row, said in enumerate(self.said)
        ]
        drawn = jax.random.categorical(key, np.array([each.sum() for each in found]), shape=(samples,))
        return [Completion(np.array(self.said[i], np.int32), found[i], "stop") for i in np.asarray(drawn)]


class Known:
    """A collector that has a right and a wrong answer to each of two questions, and one of them to train on."""

    def collect(self, state, number, draws):
        groups = [group_of(asked(name), RIGHT, WRONG) for name in ("one", "two")]
        return Experience(groups[:1], [t for group in groups for t in group], draws, 1)

    def state(self):
        return {}


class Setting:
    """A policy with random weights, and what trains it."""

    def __init__(self):
        self.recipe = validate.recipe_from(TINY)
        self.chat, self.mesh = make_chat(self.recipe), make_mesh(devices=jax.local_devices()[:1])
        self.graph, shapes = abstract(make_model(self.recipe), self.mesh)
        self.weights = materialise(make_model(self.recipe), shapes)
        pace = self.recipe.rl.optimizer
        self.optimizing = make_optimizing(pace, 99, self.recipe.model, algorithm=self.recipe.optimizer)
        self.refresh = Refresh(self.recipe.rl, Choosing(self.chat, self.graph), self.chat, (), KEY)

    def fresh(self):
        copied = jax.tree.map(lambda x: x + 0, self.weights)  # an update gives its state's memory away
        return fresh_state(copied, self.optimizing.optimizer, self.mesh)

    def learn(self, refresh, steps, state=None, start=0, used=0, tokens=0):
        settings = dataclasses.replace(self.recipe.rl, steps=steps, tokens=tokens)
        prepare = rl.Preparation(settings, LENGTH, 16, self.mesh)
        curriculum = Curriculum(("gcd",), 0, 0.8, seed=0)
        parts = self.optimizing, self.graph, state or self.fresh(), Known(), curriculum, self.chat, prepare, None
        return list(rl.train(settings, *parts, start=start, draws=0, used=used, samples_per_step=1, refresh=refresh))


@pytest.fixture(scope="module")
def setting():
    """The critic's question is a word, so that a model of one layer reads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rubrics, "COMPARE", "Compare.{rubrics}")
        yield Setting()


def test_a_step_trains_on_its_lessons_and_a_resumed_one_too(setting):
    whole = setting.learn(setting.refresh, steps=2)
    (first,) = setting.learn(setting.refresh, steps=1)
    (second,) = setting.learn(setting.refresh, steps=2, state=first.state, start=1, used=first.cursor["tokens"])
    told = [{name: float(value) for name, value in step.metrics.items()} for step in (whole[1], second)]
    assert told[0] == told[1] and told[0]["grad_norm"] > 0
    one, other = (jax.tree.leaves(step.state) for step in (whole[1], second))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    answers, verdicts = 2 * 2, 4 * 16 * len(setting.refresh.engine.said[0])
    assert whole[0].metrics["sampled_tokens"] == 2 * answers + verdicts
    assert whole[0].metrics["trained_tokens"] <= answers + verdicts
    assert any(sample["task"] == "critic" for sample in whole[0].samples)


def test_the_step_that_uses_the_tokens_up_is_marked_as_the_last(setting):
    a_step = setting.learn(None, steps=1)[0].metrics["used_tokens"]
    steps = setting.learn(None, steps=9, tokens=a_step + 1)
    assert [(step.number, step.last) for step in steps] == [(1, False), (2, True)]
    assert setting.learn(None, steps=9, tokens=a_step, start=1, used=a_step) == []


@pytest.mark.slow
def test_agreement_rises_with_the_critic_trained_and_not_without(setting):
    def agreement(weights):
        everything = [t for name in ("one", "two") for t in group_of(asked(name), RIGHT, WRONG)]
        return agreed(setting.refresh.judged(weights, setting.refresh.lessons(everything, 0), 0))

    trained, alone = (setting.learn(refresh, steps=STEPS) for refresh in (setting.refresh, None))
    assert 0.25 < agreement(setting.weights) < 0.75 and 0.25 < agreement(alone[-1].state.weights) < 0.75
    assert agreement(trained[-1].state.weights) > 0.9
    assert "critic_agreement" not in alone[-1].metrics
