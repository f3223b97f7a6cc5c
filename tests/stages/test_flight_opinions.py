"""What models say of groups in flight, over a real engine with random weights, which says anything at all."""

import asyncio
import dataclasses
import itertools
import json
import random
import types

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.judges.judge import JudgeFailed, Prompted
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Request
from posttrain_jax.run.recipe import RL, Episodes, Judge, Reward, Tasks
from posttrain_jax.stages.collecting import InFlight
from posttrain_jax.stages.experience import statistics
from posttrain_jax.stages.flight import Flight
from posttrain_jax.stages.judging import Judging
from posttrain_jax.stages.playing import Played
from posttrain_jax.stages.scoring import Scoring

SETTINGS = RL(
    prompts=2, group_size=3, max_rounds=4, carry_over=1, overlong_buffer=24, overlong_penalty=0.5, format_reward=0.0
)
NAMES = ("gcd", "spell_backward")
STOP = tuple(range(0, 300, 12))


@pytest.fixture(scope="module")
def chat():
    return chats.for_family("minimax_m2", tokenizer=tokenizers.load("tiny"), keep_all_thinking=True)


@pytest.fixture(scope="module")
def make_engine(arch, chat):
    def make(**limits):
        limits = {"slots": 3, "decode_chunk": 4, "prefill_batch": 2, "stop_tokens": STOP, **limits}
        return Engine(dataclasses.replace(arch, vocab=chat.tokenizer.size, max_length=2048), Limits(**limits))

    return make


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine(max_prompt=64, max_response=24)


@pytest.fixture(scope="module")
def critic(make_engine):
    return make_engine(max_prompt=96, max_response=8)


@pytest.fixture(scope="module")
def worldly(make_engine):
    """With room for the declaration of a tool."""
    return make_engine(max_prompt=64, max_response=900, read_chunk=256)


@pytest.fixture(scope="module")
def policies(engine, make_model):
    """Weights of four steps."""
    state = nnx.state(make_model(engine.arch))
    return [jax.tree.map(lambda x, s=s: x * (1 + 0.05 * s), state) for s in range(4)]


class Reading(Judging):
    """Reads the last tokens of each response, for random weights seldom come to an answer."""

    def shown(self, group):
        return [self.chat.tokenizer.decode(t.segments[-1].tokens[-12:].tolist()) for t in group]


class Sampled(Reading):
    """The policy's verdict is whether the tokens that it samples add up to an odd number."""

    def judge(self, sampler=None):
        async def ask(messages, seed):
            prompt = self.chat.encode(messages, add_generation_prompt=True)[0][-90:]
            completion = await sampler.complete(Request(tuple(prompt), seed, 8, 1.0))
            return f"Verdict: {'AB'[int(completion.tokens.sum()) % 2]}"

        return Prompted(ask)


class Elsewhere:
    """Prefers the answer whose letters add up to more; takes its time, and is away for some words."""

    def __init__(self, delay=0.0, away=lambda a, b: False):
        self.random, self.delay, self.away = random.Random(0), delay, away

    async def ask(self, messages, seed):
        await asyncio.sleep(self.delay * self.random.random())
        a, b = (text.strip() for text in messages[1]["content"].split("```")[3::2])
        if self.away(a, b):
            raise JudgeFailed("HTTP 503")
        return f"Verdict: {'A' if sum(map(ord, a)) > sum(map(ord, b)) else 'B'}"


class Sum:
    """A reward model whose score is the sum of a conversation's tokens, modulo 7, times the only weight it has."""

    def __init__(self):
        self.read = []

    def __call__(self, weights, sequences):
        self.read += sequences
        return np.array([weights["weight"] * (sum(tokens) % 7) for tokens in sequences], np.float64)


CRITIC = Judge(name="self_critique")


def flown(
    engine, chat, policies, judging=None, scorer=None, *, settings=SETTINGS, saved_after=None, names=NAMES, beside=False
):
    """The experience of each step; after ``saved_after`` steps everything is saved and made anew."""
    episodes, reward = Episodes(turns=3), Reward(model_weight=0.5 if scorer else 0.0)

    def fresh(saved=None):
        curriculum, scoring = Curriculum(names, 0, 0.8, seed=0), Scoring(reward, scorer)
        more = {"scoring": scoring, "judging": judging, "beside": beside}
        flight = Flight(settings, episodes, Tasks(names=names), engine, chat, curriculum, 5, **more)
        if saved:
            curriculum.restore(saved["curriculum"])
            scoring.restore(saved["scoring"])
            flight.restore(saved["flight"])
        return curriculum, InFlight(flight)

    curriculum, collector = fresh()
    draws, found = 0, []
    for step, weights in enumerate(policies):
        state = types.SimpleNamespace(weights=weights, reward={"weight": 2.0})
        found.append(collector.collect(state, step + 1, draws))
        draws = found[-1].draws
        if step == saved_after:
            saved = json.loads(json.dumps(collector.state() | {"curriculum": curriculum.state()}))
            collector.flight.close()
            curriculum, collector = fresh(saved)
    collector.flight.close()
    return found


def bits(steps):
    def told(t):
        return (t.problem.question, t.reward, t.opinion, t.score, *(a.tobytes() for s in t.segments for a in s[:4]))

    return [([list(map(told, group)) for group in step.groups], statistics(step)) for step in steps]


def carried(steps):
    """Whether some response was begun under weights before those of the step that took it."""
    drawn = [(n, s.versions[s.sampled]) for n, step in enumerate(steps) for t in step.everything for s in t.segments]
    return any((versions < n).any() for n, versions in drawn)


@pytest.fixture(scope="module")
def judged(engine, critic, chat, policies):
    return flown(engine, chat, policies, Sampled(CRITIC, chat, engine=critic), Sum())


def test_every_response_that_is_taken_has_its_opinion_and_its_score(judged):
    assert [len(step.groups) for step in judged] == [2] * 4 and carried(judged)
    everything = [t for step in judged for t in step.everything]
    assert len({t.opinion for t in everything}) > 2 and all(-0.5 <= t.opinion <= 0.5 for t in everything)
    assert all(t.score == 2.0 * (sum(t.segments[-1].tokens.tolist()) % 7) for t in everything)
    assert all({"judge_consistent", "score", "score_length"} <= statistics(step).keys() for step in judged)


@pytest.mark.parametrize("saved_after", range(3))
def test_saved_and_begun_again_the_policy_judges_the_same_bit_for_bit(
    engine, critic, chat, policies, judged, saved_after
):
    again = flown(engine, chat, policies, Sampled(CRITIC, chat, engine=critic), Sum(), saved_after=saved_after)
    assert bits(again) == bits(judged)


def test_how_long_a_judge_elsewhere_takes_changes_nothing(engine, chat, policies):
    runs = [
        flown(engine, chat, policies, Reading(CRITIC, chat, endpoint=Elsewhere(delay)), saved_after=after)
        for delay, after in ((0.0, None), (0.02, None), (0.3, 1))
    ]
    assert carried(runs[0]) and len({t.opinion for step in runs[0] for t in step.everything}) > 2
    assert bits(runs[0]) == bits(runs[1]) == bits(runs[2])


def test_while_the_judge_thinks_others_are_sampled(engine, chat, policies):
    """An answer that is only given once the sampler has drawn more tokens, or once it stands still."""
    went_on = []

    class Waiting(Elsewhere):
        async def ask(self, messages, seed):
            before = flights[0]._rounds.account
            while flights[0]._rounds.account == before and not flights[0]._rounds._paused:
                await asyncio.sleep(0.001)
            went_on.append(flights[0]._rounds.account != before)
            return await super().ask(messages, seed)

    flights, make = [], Flight.__init__
    judging = Reading(CRITIC, chat, endpoint=Waiting())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flight, "__init__", lambda self, *a, **k: (flights.append(self), make(self, *a, **k))[1])
        flown(engine, chat, policies[:2], judging)
    assert sum(went_on) > 3


def test_a_response_that_the_judge_was_away_for_is_not_trained_on(engine, chat, policies):
    def unlucky(text):
        return sum(map(ord, text.strip())) % 3 == 0

    def failed(a, b):
        return a != b and (unlucky(a) or unlucky(b))

    judging = Reading(CRITIC, chat, endpoint=Elsewhere(away=failed))
    steps = flown(engine, chat, policies, judging)
    everything = [t for step in steps for t in step.everything]
    groups = [everything[i : i + 3] for i in range(0, len(everything), 3)]
    for group in groups:
        texts = judging.shown(group)
        pairs = [[failed(a, b) for j, b in enumerate(texts) if j != i] for i, a in enumerate(texts)]
        assert [t.masked for t in group] == [all(mine) for mine in pairs]
    masked = {id(t) for t in everything if t.masked}
    assert 0 < len(masked) < len(everything) and all(t.opinion is None for t in everything if t.masked)
    trained = [id(t) for step in steps for group in step.groups for t in group]
    assert trained and not set(trained) & masked
    assert any(len(group) == 2 for step in steps for group in step.groups)
    assert all(0 < statistics(step)["judge_failed"] < 1 for step in steps)


def test_a_judge_that_cannot_be_asked_at_all_ends_the_step(engine, chat, policies):
    judging = Reading(CRITIC, chat, endpoint=Elsewhere(away=lambda a, b: True))
    with pytest.raises(UserError, match="judge could not be asked about any response: HTTP 503"):
        flown(engine, chat, policies, judging)


def test_episodes_of_a_world_are_judged_and_scored_beside_answers(worldly, critic, chat, policies):
    """Both opinions, episodes that are carried over, and the same bits where they are taken up again."""
    settings = dataclasses.replace(SETTINGS, group_size=2, max_rounds=2)
    scorer = Sum()

    def run(saved_after=None):
        judging = Sampled(CRITIC, chat, engine=critic)
        more = {"settings": settings, "names": ("gcd", "register")}
        return flown(worldly, chat, policies[:3], judging, scorer, saved_after=saved_after, **more)

    whole, again = run(), run(saved_after=0)
    played = [t for step in whole for t in step.everything if isinstance(t, Played)]
    assert played and len(played) < sum(len(step.everything) for step in whole)
    half = len(scorer.read) // 2
    read = {tuple(tokens) for tokens in scorer.read[:half]}
    for t in played:
        assert tuple(t.segments[-1].tokens.tolist()) in read and t.segments[-1].sampled[-1]
    by_hand = [t.episode.reward + t.opinion for t in played]
    assert len({t.opinion for t in played}) > 1 and any(
        abs(t.reward - alone) > 1e-6 for t, alone in zip(played, by_hand, strict=True)
    ), "the score is in the reward too"
    trained = itertools.chain(*(group for step in whole for group in step.groups))
    assert any(isinstance(t, Played) for t in trained) and carried(whole)
    assert bits(again) == bits(whole)


def test_beside_the_trainer_groups_are_judged_on_the_samplers_device(engine, critic, chat, policies):
    apart, judge = (Engine(one.arch, one.limits, device=jax.devices()[-1]) for one in (engine, critic))
    for judging in (Sampled(CRITIC, chat, engine=judge), Reading(CRITIC, chat, endpoint=Elsewhere())):
        found = flown(apart, chat, policies, judging, Sum(), saved_after=1, beside=True)
        assert [len(step.groups) for step in found] == [2] * 4
        everything = [t for step in found for t in step.everything]
        assert all(t.opinion is not None and t.score is not None for t in everything)
        taken = [t.problem.index for t in everything[::3]]
        assert len(set(taken)) == len(taken)
