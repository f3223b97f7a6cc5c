"""Groups in flight, over a real engine with random weights: rewards differ by the length of what it says."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.data import tasks
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.run.recipe import RL, Episodes, Tasks
from posttrain_jax.stages.experience import statistics
from posttrain_jax.stages.flight import Flight

SETTINGS = RL(
    prompts=2, group_size=3, max_rounds=4, carry_over=1, overlong_buffer=24, overlong_penalty=0.5, format_reward=0.0
)
NAMES = ("gcd", "spell_backward")


@pytest.fixture(scope="module")
def chat():
    return chats.for_family("minimax_m2", tokenizer=tokenizers.load("tiny"), keep_all_thinking=True)


@pytest.fixture(scope="module")
def engine(arch, chat):
    limits = Limits(
        slots=3, max_prompt=64, max_response=24, decode_chunk=4, prefill_batch=2, stop_tokens=tuple(range(0, 300, 12))
    )
    return Engine(dataclasses.replace(arch, vocab=chat.tokenizer.size), limits, banks=2)


@pytest.fixture(scope="module")
def policies(engine, make_model):
    """Weights of four steps."""
    state = nnx.state(make_model(engine.arch))
    return [engine.load(jax.tree.map(lambda x, s=s: x * (1 + 0.05 * s), state)) for s in range(4)]


def flown(engine, chat, policies, settings=SETTINGS, *, saved_after=None, names=NAMES, beside=False):
    """The experience of each step; after ``saved_after`` steps everything is saved and made anew."""

    def fresh():
        return Curriculum(names, 0, 0.8, seed=0)

    curriculum = fresh()
    episodes = Episodes(turns=3)
    flight = Flight(settings, episodes, Tasks(names=names), engine, chat, curriculum, seed=5, beside=beside)
    draws, found = 0, []
    for step, weights in enumerate(policies):
        experience = flight.collect(weights, step, draws)
        draws = experience.draws
        found.append(experience)
        if step == saved_after:
            saved = json.loads(json.dumps({"flight": flight.state(), "curriculum": curriculum.state()}))
            flight.close()
            curriculum = fresh()
            curriculum.restore(saved["curriculum"])
            flight = Flight(settings, episodes, Tasks(names=names), engine, chat, curriculum, seed=5, beside=beside)
            flight.restore(saved["flight"])
    flight.close()
    return found


def bits(experience):
    return [
        [(t.problem.question, t.reward, *(a.tobytes() for s in t.segments for a in s[:4])) for t in group]
        for group in experience.groups
    ]


@pytest.fixture(scope="module")
def steps(engine, chat, policies):
    return flown(engine, chat, policies)


def ages(experience, version):
    drawn = [s.versions[s.sampled] for group in experience.groups for t in group for s in t.segments]
    return version - np.concatenate(drawn)


def test_steps_are_full_and_no_token_is_older_than_allowed(steps):
    assert [len(step.groups) for step in steps] == [2] * 4
    assert all(len({t.reward for t in group}) > 1 for step in steps for group in step.groups)
    found = [ages(step, version) for version, step in enumerate(steps)]
    assert {age for each in found for age in each} == {0, 1}


def test_no_draw_is_taken_twice_or_lost(steps):
    everything = [t.problem.index for step in steps for t in step.everything[::3]]
    assert len(set(everything)) == len(everything)
    in_flight = steps[-1].draws - len(everything)
    assert 0 <= in_flight <= SETTINGS.prompts * SETTINGS.carry_over


def test_groups_may_go_on_into_two_steps(engine, chat, policies):
    found = flown(engine, chat, [*policies, *policies], dataclasses.replace(SETTINGS, carry_over=2))
    assert [len(step.groups) for step in found] == [2] * 8
    assert {age for version, step in enumerate(found) for age in ages(step, version)} == {0, 1, 2}


def test_where_no_rewards_differ_steps_end_with_all_that_is_due(engine, chat, policies):
    """Then more groups are due than a step can learn from; in the next they may be worth something, and only so many
    are kept."""
    equal = dataclasses.replace(SETTINGS, overlong_penalty=0.0, max_rounds=2)
    curriculum = Curriculum(NAMES, 0, 0.8, seed=0)
    flight = Flight(equal, Episodes(turns=3), Tasks(names=NAMES), engine, chat, curriculum, seed=5)
    first = flight.collect(policies[0], 0, 0)
    assert not first.groups and first.rounds == 2.0
    due = first.draws - len(first.everything) // 3
    assert due > equal.prompts, "more than a step can learn from"
    flight.settings = SETTINGS
    second = flight.collect(policies[1], 1, first.draws)
    flight.close()
    assert len(second.groups) == equal.prompts and len(second.everything) >= 3 * due


def test_without_carrying_over_every_token_is_new_and_nothing_is_left(engine, chat, policies):
    for version, step in enumerate(flown(engine, chat, policies, dataclasses.replace(SETTINGS, carry_over=0))):
        assert set(ages(step, version)) == {0}
        assert 3 * step.draws >= len(step.everything)


@pytest.mark.parametrize("saved_after", range(3))
def test_saved_and_begun_again_it_goes_on_bit_for_bit(engine, chat, policies, steps, saved_after):
    again = flown(engine, chat, policies, saved_after=saved_after)
    assert [bits(step) for step in again] == [bits(step) for step in steps]
    assert [statistics(step) for step in again] == [statistics(step) for step in steps]


def test_beside_the_trainer_steps_are_full_too(engine, chat, make_model):
    """On a device of its own, and nothing in flight is lost where it is saved and begun again."""
    apart = Engine(engine.arch, engine.limits, device=jax.devices()[-1])
    policies = [apart.load(nnx.state(make_model(engine.arch)))] * 4
    assert {array.device for array in jax.tree.leaves(policies[0])} == {jax.devices()[-1]}
    found = flown(apart, chat, policies, saved_after=1, beside=True)
    assert [len(step.groups) for step in found] == [2] * 4
    assert {age for version, step in enumerate(found) for age in ages(step, version)} <= {0, 1}
    everything = [t.problem.index for step in found for t in step.everything[::3]]
    assert len(set(everything)) == len(everything)


def test_episodes_of_a_world_fly_beside_answers(arch, chat, make_model):
    limits = Limits(
        slots=3, max_prompt=64, max_response=1500, decode_chunk=8, prefill_batch=2, read_chunk=256, stop_tokens=(7, 19)
    )
    engine = Engine(dataclasses.replace(arch, vocab=chat.tokenizer.size, max_length=2048), limits)
    weights = engine.load(nnx.state(make_model(engine.arch)))
    settings = dataclasses.replace(SETTINGS, prompts=2, group_size=2, max_rounds=1, carry_over=0)
    [step] = flown(engine, chat, [weights], settings, names=("gcd", "shop"))
    worlds = [t for t in step.everything if t.problem.task == "shop"]
    for one in worlds:
        assert one.finish in ("format", "done", "turns", "context") and one.length
        assert one.shown(chat)["messages"][0]["content"] == one.problem.question
    assert worlds


def test_a_canary_is_judged_and_neither_trained_on_nor_a_step_of_the_curriculum(engine, chat, policies, monkeypatch):
    drawn = tasks.problem
    monkeypatch.setattr(tasks, "problem", lambda *a, **k: dataclasses.replace(drawn(*a, **k), canary=True))
    settings = dataclasses.replace(SETTINGS, carry_over=0, max_rounds=1)
    curriculum = Curriculum(NAMES, 0, 0.8, seed=0)
    flight = Flight(settings, Episodes(turns=3), Tasks(names=NAMES), engine, chat, curriculum, seed=5)
    experience = flight.collect(policies[0], 0, 0)
    flight.close()
    assert not experience.groups and len(experience.everything) >= 6
    assert not any(counts[0] for counts in curriculum.counts.values())
