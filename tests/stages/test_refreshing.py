"""The critic's lessons within a step of reinforcement learning."""

import dataclasses
import random
import types

import jax
import numpy as np
import pytest

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.data.tasks import Problem
from posttrain_jax.models.decoder import abstract, materialise
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.rewards.judges import rubrics
from posttrain_jax.rewards.judges.refresh import lessons
from posttrain_jax.rewards.judges.rubrics import compare_messages, verdict_line
from posttrain_jax.rewards.verdict import judged as verdict_of
from posttrain_jax.rollout.request import Completion
from posttrain_jax.run import validate
from posttrain_jax.run.recipe import RL, Judge
from posttrain_jax.stages import rl
from posttrain_jax.stages.answering import answered, prompt_tokens
from posttrain_jax.stages.experience import Experience, Trajectory
from posttrain_jax.stages.optimizing import make_optimizing
from posttrain_jax.stages.refreshing import Refresh, agreed
from posttrain_jax.stages.setup import make_chat, make_engine, make_model
from posttrain_jax.stages.sft import make_loss
from posttrain_jax.stages.step import fresh_state, make_update

KEY = jax.random.key(5)
RIGHT, WRONG = "7777", "2222"


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

    def __init__(self, chat, *said, max_prompt=10_000):
        self.chat, self.said = chat, said
        self.limits = types.SimpleNamespace(max_prompt=max_prompt)

    def load(self, weights):
        return weights

    def generate(self, weights, prompts, key, *, samples, temperature):
        assert samples == len(self.said) and temperature == 1.0
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


LENGTH = 128
LR = 3e-3
TINY = {
    "model": dict(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=16, rotary_dim=8, experts=2, experts_per_token=1)
    | {"expert_ffn": 32, "max_length": LENGTH, "vocab": 640},
    "tasks": {"names": ("gcd",), "max_level": 0},
    "sft": {"length": LENGTH},
    "rollout": {"slots": 32, "max_prompt": LENGTH - 16, "max_response": 16, "decode_chunk": 8, "prefill_batch": 8},
    "rl": dict(steps=12, prompts=2, group_size=8, minibatches=1, length=LENGTH, microbatch_rows=8, format_reward=0.0)
    | {"optimizer": dict(learning_rate=LR, warmup_steps=0, weight_decay=0.0, schedule="constant")}
    | {"judge": dict(name="self_critique", refresh=4, max_prompt=LENGTH - 16, max_response=16)},
}


class Asking:
    """A collector that asks what the policy knows half of the time."""

    def __init__(self, settings, engine, chat):
        self.settings, self.engine, self.chat = settings, engine, chat
        self.problems = [asked(name) for name in ("one", "two", "three", "four")]

    def collect(self, state, number, draws):
        prompts = [prompt_tokens(self.chat, "Say.", problem.question) for problem in self.problems]
        key, weights = jax.random.fold_in(KEY, number), self.engine.load(state.weights)
        answers = self.engine.generate(weights, prompts, key, samples=self.settings.group_size, temperature=1.0)
        groups = [
            [self.judged(problem, prompt, completion) for completion in completions]
            for problem, prompt, completions in zip(self.problems, prompts, answers, strict=True)
        ]
        mixed = [group for group in groups if len({t.reward for t in group}) > 1]
        return Experience(mixed[: self.settings.prompts], [t for group in groups for t in group], draws, 1)

    def judged(self, problem, prompt, completion):
        message = answered(self.chat, completion)
        verdict = verdict_of(message["content"] == RIGHT, "another", message["content"])
        return Trajectory(problem, prompt, completion, message, verdict, verdict.reward)

    def state(self):
        return {}


@dataclasses.dataclass
class Setting:
    """A small policy that answers at random, and judges a little better than that."""

    def __post_init__(self):
        self.recipe = validate.recipe_from(TINY)
        self.settings = self.recipe.rl
        self.chat, self.mesh = make_chat(self.recipe), make_mesh(devices=jax.local_devices()[:1])
        self.graph, shapes = abstract(make_model(self.recipe), self.mesh)
        self.weights = materialise(make_model(self.recipe), shapes)
        self.engine = make_engine(self.recipe, self.chat, mesh=self.mesh)
        self.optimizing = make_optimizing(
            self.settings.optimizer, 99, self.recipe.model, algorithm=self.recipe.optimizer
        )
        self.refresh = Refresh(self.settings, self.engine, self.chat, (), KEY)

    def taught(self, steps, share=0.75):
        """Demonstrations: half of the answers are right, and ``share`` of the verdicts."""
        draw = random.Random(0)
        optimizing = self.optimizing
        state = fresh_state(self.weights, optimizing.optimizer, self.mesh)
        update = make_update(optimizing.optimizer, make_loss(self.graph), state)
        for _ in range(steps):
            batch = [self._row(self._demonstration(draw, share)) for _ in range(16)]
            state, numbers = update(state, {name: np.stack([row[name] for row in batch])[None] for name in batch[0]}, 1)
        return state.weights

    def _demonstration(self, draw, share):
        question, wrong = f"What is {draw.choice(('one', 'two', 'three', 'four'))}?", WRONG
        if draw.random() < 0.3:
            messages = [{"role": "system", "content": "Say."}, {"role": "user", "content": question}]
            content = draw.choice((RIGHT, wrong))
        else:
            lesson = draw.choice(lessons(question, [RIGHT, wrong], [True, False], (), most=1, seed=0))
            messages = lesson.messages
            content = verdict_line(lesson.verdict if draw.random() < share else -lesson.verdict)
        return [*messages, {"role": "assistant", "reasoning_content": "so", "content": content}]

    def _row(self, messages):
        tokens, mask = map(np.array, self.chat.encode(messages))
        room = LENGTH - len(tokens) + 1
        row = {"tokens": tokens[:-1], "targets": tokens[1:], "mask": mask[1:].astype(np.float32)}
        row |= {"positions": np.arange(len(tokens) - 1), "segment_ids": np.ones(len(tokens) - 1, np.int32)}
        return {name: np.pad(array, (0, room)) for name, array in row.items()}

    def learn(self, weights, refresh, start=0, steps=12, state=None, collector=None):
        if state is None:  # an update gives its state's memory away
            copied = jax.tree.map(lambda x: x + 0, weights)
            state = fresh_state(copied, self.optimizing.optimizer, self.mesh)
        prepare = rl.Preparation(self.settings, LENGTH, 16, self.mesh)
        own = dataclasses.replace(self.settings, steps=steps)
        collector = collector or Asking(own, self.engine, self.chat)
        curriculum = Curriculum(("gcd",), 0, 0.8, seed=0)
        told = dict(draws=0, used=0, samples_per_step=1, refresh=refresh, start=start)
        parts = self.optimizing, self.graph, state, collector, curriculum, self.chat, prepare, None
        return list(rl.train(own, *parts, **told))

    def agreement(self, weights):
        everything = [t for name in ("one", "two", "three", "four") for t in group_of(asked(name), RIGHT, WRONG)]
        return agreed(self.refresh.judged(weights, self.refresh.lessons(everything, 0), 0))


@pytest.fixture(scope="module")
def setting():
    """The critic's question is a word, which a model this small learns to read in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rubrics, "COMPARE", "Compare.{rubrics}")
        yield Setting()


class Known:
    """A collector that has one right and one wrong answer to each of two questions, and nothing to train on."""

    def collect(self, state, number, draws):
        everything = [t for name in ("one", "two") for t in group_of(asked(name), RIGHT, WRONG)]
        return Experience([], everything, draws, 1)

    def state(self):
        return {}


def test_a_step_trains_on_its_lessons_and_a_resumed_one_too(setting):
    said = [f"so\n</think>\n\nVerdict: {verdict}" for verdict in "ABABABAB"]
    refresh = dataclasses.replace(setting.refresh, engine=Always(setting.chat, *said, max_prompt=LENGTH))
    whole = setting.learn(setting.weights, refresh, steps=2, collector=Known())
    (first,) = setting.learn(setting.weights, refresh, steps=1, collector=Known())
    (second,) = setting.learn(None, refresh, start=1, steps=2, state=first.state, collector=Known())
    told = [{name: float(value) for name, value in step.metrics.items()} for step in (*whole, second)]
    assert all(numbers["grad_norm"] > 0 for numbers in told)
    assert told[0]["critic_agreement"] == told[0]["critic_agreement_after"] == 0.5, "the engine always says the same"
    assert told[0]["trained_tokens"] == sum(4 * len(refresh.engine.completion(text).tokens) for text in said)
    assert told[1] == told[2]
    one, other = (jax.tree.leaves(step.state) for step in (whole[-1], second))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def taught(setting):
    return setting.taught(steps=STEPS)


@pytest.mark.slow
def test_agreement_rises_with_the_critic_trained_and_not_without(setting, weights):
    before = setting.agreement(weights)
    trained, alone = (setting.learn(copied(weights), refresh) for refresh in (setting.refresh, None))
    print(
        before,
        [
            (float(s.metrics["pass_rate"]), s.metrics.get("critic_agreement"), s.metrics.get("critic_agreement_after"))
            for s in trained
        ],
    )
    print(
        [float(s.metrics["pass_rate"]) for s in alone],
        setting.agreement(trained[-1].state.weights),
        setting.agreement(alone[-1].state.weights),
    )
    assert 0
