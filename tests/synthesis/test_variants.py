"""Variants change how a world looks, and nothing of what can be done in it."""

from __future__ import annotations

import asyncio
import random
import re

import pytest

from posttrain_jax.environments import worlds
from posttrain_jax.synthesis import domains, evolution, expert, personas, tasks, verbs
from posttrain_jax.synthesis.personas import PERSONAS
from posttrain_jax.synthesis.variant import BUSY, ENVELOPES, LOST, Dress, Variant

NAMES = tuple(verbs.VERBS)


def plain(world, **changes):
    """The variant that leaves a world as it is."""
    tools = evolution.own_tools(world)
    dresses = {n: Dress(n, t.description, {a: a for a in t.parameters["properties"]}) for n, t in tools.items()}
    return Variant(dresses=dresses, **changes)


def drawn(count, names=NAMES, seed=0):
    async def all_of_them():
        return [await tasks.task(index, names, seed, 3) for index in range(count)]

    return asyncio.run(all_of_them())


def played(task, **changes):
    return asyncio.run(expert.played(task.world, task.level, task.seed, task.variant, **changes))


@pytest.mark.parametrize("application", domains.APPLICATIONS, ids=lambda each: each.name)
def test_other_words_can_be_turned_back(application):
    world = worlds.world(application.world)
    for seed in range(20):
        variant = Variant(words=evolution.replaced(application, random.Random(seed)))
        record = asyncio.run(world.demonstrate(world.highest, seed))
        for message in record["messages"]:
            outward = variant.outward(message["content"])
            assert variant.inward(outward) == message["content"]
            assert not set(re.findall(r"\w+", outward)) & (set(variant.words) - set(variant.words.values()))
            for call in message.get("tool_calls", ()):
                arguments = call["function"]["arguments"]
                assert variant.inward(variant.outward(arguments)) == arguments


def test_what_is_drawn_can_be_solved_and_leaves_the_tools_that_are_needed():
    for task in drawn(150):
        episode = played(task)
        assert episode.reward == 1.0 and episode.ended == "done"
        names = {tool["function"]["name"] for tool in episode.tools}
        assert len(names) == len(episode.tools)
        assert {call["function"]["name"] for m in episode.messages for call in m.get("tool_calls", ())} <= names
        assert not episode.outcomes.keys() & {"refused", "unknown", "invalid", "distractor"}


def test_a_task_is_a_function_of_its_number():
    assert drawn(30) == drawn(30) and drawn(30) != drawn(30, seed=1)
    episodes = [[played(task) for task in drawn(30)] for _ in range(2)]
    assert episodes[0] == episodes[1]
    assert len({tasks.key(episode.messages, episode.tools) for episode in episodes[0]}) == 30


def test_every_axis_is_perturbed_and_every_outcome_happens():
    found = drawn(150)
    assert {axis for task in found for axis in tasks.perturbed(task.variant)} == {
        "tools",
        "system prompt",
        "user prompt",
        "environment",
        "tool results",
    }
    assert {name for task in found for name in played(task).outcomes} == {"success", "busy", "lost"}
    assert {task.variant.persona.name for task in found} == {persona.name for persona in PERSONAS}
    assert tasks.perturbed(plain("bank")) == []


def test_an_agent_told_to_call_one_tool_at_a_time_does_so():
    at_once = {}
    for task in drawn(150):
        most = max(len(message.get("tool_calls", ())) for message in played(task).messages)
        told = evolution.ONE_CALL in task.variant.system
        assert told != task.variant.parallel
        at_once[told] = max(most, at_once.get(told, 0))
    assert at_once[True] == 1 < at_once[False]


@pytest.mark.parametrize("envelope", ENVELOPES)
def test_a_result_can_be_taken_out_of_its_envelope(envelope):
    variant = Variant(envelope=envelope)
    for text in ("price 3, stock 2", "error: no file a/b", "", '{"result": "x"}'):
        assert variant.unwrapped(variant.wrapped(text)) == text


@pytest.mark.parametrize("world", NAMES)
def test_a_call_that_fails_at_first_is_repeated_and_done_once(world):
    failing = plain(world, failures=1.0)
    needed = 0
    for seed in range(20):
        episode = asyncio.run(expert.played(world, 1, seed, failing))
        assert episode.reward == 1.0
        texts = [message["content"] for message in episode.messages if message["role"] == "tool"]
        told = sum(text.removeprefix("error: ") in BUSY + LOST for text in texts)
        needed += told
        assert told == episode.outcomes.get("busy", 0) + episode.outcomes.get("lost", 0)
    assert needed >= 40


def test_a_tool_that_changes_something_never_does_it_and_tells_of_a_failure():
    async def episode():
        _, dressed = expert.staged("bank", 0, plain("bank", failures=1.0))
        for seed in range(30):
            await dressed.reset(seed)
            world = dressed._environment
            before = dict(world.state)
            call = {"name": "send", "arguments": {"source": "Ann", "target": "Bob", "amount": 1}}
            step = await dressed.step({"role": "assistant", "content": "", "tool_calls": [{"function": call}]})
            assert step.messages[0]["content"].startswith("error: ") and world.state == before

    asyncio.run(episode())


def test_mistakes_are_told_in_the_words_of_the_variant():
    async def told(name, **arguments):
        tool = {"function": {"name": "elsewhere", "description": "", "parameters": {"type": "object"}}}
        dresses = {"balance": Dress("how_much", "", {"owner": "holder"})}
        _, dressed = expert.staged("bank", 0, Variant(dresses=dresses, distractors=[tool], words={"Ann": "T1"}))
        observation = await dressed.reset(0)
        assert {each["function"]["name"] for each in observation.tools} == {"how_much", "elsewhere"}
        call = {"function": {"name": name, "arguments": arguments}}
        step = await dressed.step({"role": "assistant", "content": "", "tool_calls": [call]})
        return step.messages[0]["content"], dict(dressed.outcomes)

    assert asyncio.run(told("balance", owner="T1")) == (
        "error: no tool 'balance'; there are: how_much",
        {"unknown": 1},
    )
    assert asyncio.run(told("how_much", owner="T1"))[0].startswith("error: argument 'holder' is missing")
    assert asyncio.run(told("elsewhere")) == ("error: not available here", {"distractor": 1})
    assert asyncio.run(told("how_much", holder="Nobody")) == ("error: no owner Nobody", {"refused": 1})
    assert asyncio.run(told("how_much", holder="T1"))[0].startswith("T1 has ")


def test_a_stepwise_user_brings_one_wish_at_a_time():
    persona = next(each for each in PERSONAS if each.name == "stepwise")
    episode = asyncio.run(expert.played("bank", 3, 5, plain("bank", persona=persona)))
    said = [message["content"] for message in episode.messages if message["role"] == "user"]
    assert episode.reward == 1.0 and len(said) == 4
    assert said == [words for words, _ in personas.script(persona, worlds.world("bank").question(3, 5))]


def test_a_careless_attempt_is_not_rewarded():
    for task in drawn(40):
        changing = frozenset(name for name, verb in verbs.VERBS[task.world].items() if not verb.reads)
        try:
            assert played(task, forgets=changing).reward == 0.0
        except expert.Unsolved:
            continue


def test_real_tools_stand_among_the_others_and_serve_nothing():
    real = [{"type": "function", "function": {"name": "get_weather", "description": "", "parameters": {}}}]

    async def found():
        return [await tasks.task(index, NAMES, 0, 0, real) for index in range(60)]

    with_real = [task for task in asyncio.run(found()) if real[0] in task.variant.distractors]
    assert len(with_real) > 5
    assert all(played(task).reward == 1.0 for task in with_real)


def test_every_tool_of_every_world_has_other_words():
    for world in NAMES:
        own = evolution.own_tools(world)
        assert own.keys() == verbs.VERBS[world].keys()
        for name, tool in own.items():
            assert verbs.VERBS[world][name].names[0] == name and verbs.VERBS[world][name].about[0] == tool.description
            assert all(len(verbs.ARGUMENTS[argument]) > 1 for argument in tool.parameters["properties"])
