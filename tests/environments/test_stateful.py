"""The worlds with a state: what they ask can be done, nothing else is rewarded, and their words are few."""

from __future__ import annotations

import asyncio

import pytest

from posttrain_jax import chat
from posttrain_jax.data import tasks
from posttrain_jax.environments import worlds
from posttrain_jax.environments.stateful import Stateful

NAMES = ("calendar", "files", "database", "bank")
CELLS = [(name, level) for name in NAMES for level in range(worlds.world(name).highest + 1)]
ROW = {"table": "staff", "row": 9, "column": "pay", "value": "1"}
ENDS = {"role": "assistant", "content": "Done."}


async def played(name, level, seed, messages):
    """The reward of an episode in which the agent says these messages, and the results that it reads."""
    environment = worlds.world(name).make(level)
    await environment.reset(seed)
    results = []
    for message in messages:
        step = await environment.step(message)
        results += [result["content"] for result in step.messages]
        if step.done:
            return step.reward, results
    raise AssertionError("the episode did not end")


def said(record):
    return [message for message in record["messages"] if message["role"] == "assistant"]


@pytest.mark.parametrize(("name", "level"), CELLS)
def test_what_is_asked_can_be_done_and_doing_less_is_not_rewarded(name, level):
    for seed in range(50):
        answers = said(asyncio.run(worlds.world(name).demonstrate(level, seed)))
        reward, results = asyncio.run(played(name, level, seed, answers))
        assert reward == 1.0 and not any(result.startswith("error") for result in results)
        assert asyncio.run(played(name, level, seed, [ENDS]))[0] == 0.0
        changes = [m for m in answers[:-1] if not all(c["function"]["name"] in READS for c in m["tool_calls"])]
        fewer = [message for message in answers if message is not changes[-1]]
        assert asyncio.run(played(name, level, seed, fewer))[0] == 0.0


READS = {"show", "folders", "files", "read", "find", "rows", "balance", "owners"}


def test_a_question_is_answered_exactly():
    answers = said(asyncio.run(worlds.world("database").demonstrate(3, 0)))
    assert asyncio.run(played("database", 3, 0, answers))[0] == 1.0
    assert asyncio.run(played("database", 3, 0, [*answers[:-1], ENDS]))[0] == 0.0


@pytest.mark.parametrize(("name", "level"), CELLS)
def test_an_episode_begins_the_same_from_the_same_seed(name, level):
    world = worlds.world(name)
    assert len({world.question(level, seed) for seed in range(40)}) > 30
    first, again = (asyncio.run(world.make(level).reset(7)) for _ in range(2))
    assert first == again and first.messages[-1]["content"] == world.question(level, 7)
    kind = world.make(level)
    assert isinstance(kind, Stateful)
    state, goal = kind.begun(level, 7)
    assert state != goal.state


@pytest.mark.parametrize("name", NAMES)
def test_a_demonstration_fits_a_short_context(name):
    speaker = chat.for_family("minimax_m2")
    for seed in range(5):
        record = asyncio.run(worlds.world(name).demonstrate(0, seed))
        assert len(speaker.encode(record["messages"], record["tools"])[0]) < 1500


def test_splits_of_every_world_share_no_question():
    for name in NAMES:
        of = {split: {worlds.problem(name, 1, i, split).question for i in range(60)} for split in tasks.SPLITS}
        assert not of["train"] & of["heldout"] and min(map(len, of.values())) > 40


@pytest.mark.parametrize(
    ("name", "call", "told"),
    [
        ("calendar", {"name": "cancel", "arguments": {"day": "mon", "hour": 17}}, "error: mon 17 is free"),
        ("calendar", {"name": "book", "arguments": {"day": "mon", "hour": 3, "name": "Ann"}}, "error: no hour 3"),
        ("files", {"name": "delete", "arguments": {"path": "nowhere/a.txt"}}, "error: no file nowhere/a.txt"),
        (
            "database",
            {"name": "set", "arguments": ROW},
            "error",
        ),
        ("bank", {"name": "send", "arguments": {"source": "Ann", "target": "Bob", "amount": 1000}}, "error: cannot"),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(name, call, told):
    async def episode():
        environment = worlds.world(name).make(0)
        await environment.reset(1)
        before = repr(environment.state)
        step = await environment.step({"role": "assistant", "content": "", "tool_calls": [{"function": call}]})
        assert step.messages[0]["content"].startswith(told) and repr(environment.state) == before

    asyncio.run(episode())
