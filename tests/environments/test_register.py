"""posttrain_jax.environments.register: its question is about ages that only the tool tells."""

import asyncio
import re

import pytest

from posttrain_jax.environments import worlds
from posttrain_jax.environments.expert import call, spoken
from posttrain_jax.environments.register import Register


async def played(level, seed, answer):
    """Asks for everyone in the question, then answers with ``answer(ages)``."""
    world = Register(level)
    observation = await world.reset(seed)
    people = re.findall("|".join(world.state), observation.messages[-1]["content"])
    step = await world.step(spoken("", *(call("age", name=name) for name in people)))
    ages = [int(message["content"]) for message in step.messages]
    assert not step.done and ages == [world.state[name] for name in people] and len(people) == level + 2
    return await world.step({"role": "assistant", "content": answer(ages)})


@pytest.mark.parametrize("level", range(Register.highest + 1))
def test_the_sum_earns_the_reward_and_nothing_else_does(level):
    for seed in range(20):
        assert asyncio.run(played(level, seed, lambda ages: str(sum(ages)))).reward == 1.0
        assert asyncio.run(played(level, seed, lambda ages: str(sum(ages) + 1))).reward == 0.0


def test_nobody_else_is_known():
    async def ask():
        world = Register()
        await world.reset(0)
        return await world.step(spoken("", call("age", name="Zoe")))

    assert asyncio.run(ask()).messages[0]["content"].startswith("error: no Zoe")


@pytest.mark.parametrize("level", range(Register.highest + 1))
def test_demonstrations_are_right_and_the_answer_is_not_in_the_question(level):
    for index in range(10):
        record = worlds.demonstration("register", level, index, 3)
        told = [int(m["content"]) for m in record["messages"] if m["role"] == "tool"]
        assert len(told) == level + 2 and record["messages"][-1]["content"] == str(sum(told))
        assert not re.search(r"\d", record["messages"][0]["content"])
