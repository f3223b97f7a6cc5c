"""Worlds by name, their splits, and their demonstrations."""

import asyncio

import pytest

from posttrain_jax.data import sources, tasks
from posttrain_jax.environments import worlds
from posttrain_jax.environments.shop import HIGHEST_LEVEL, Shop, question
from posttrain_jax.errors import UserError


def test_a_problem_asks_what_its_environment_asks():
    for level in range(HIGHEST_LEVEL + 1):
        asked = worlds.problem("shop", level, 5, "train", seed=3)
        observation = asyncio.run(worlds.environment(asked).reset(asked.entry["seed"]))
        assert observation.messages[-1]["content"] == asked.question == question(level, asked.entry["seed"])


def test_splits_share_no_question():
    of = {split: {worlds.problem("shop", 1, i, split).question for i in range(300)} for split in tasks.SPLITS}
    assert not of["train"] & of["heldout"] and min(map(len, of.values())) > 200


def test_levels_above_the_highest_are_the_highest():
    assert worlds.problem("shop", 9, 0).level == HIGHEST_LEVEL


def test_problems_of_tasks_are_the_tasks_own():
    assert worlds.problem("gcd", 1, 7, seed=2) == tasks.problem("gcd", 1, 7, seed=2)
    mixed = worlds.heldout(("gcd", "shop"), 1, 20, seed=0)
    assert {p.task for p in mixed} == {"gcd", "shop"} and len({p.question for p in mixed}) == 20


def test_a_world_from_elsewhere_is_found_by_its_path():
    with pytest.raises(UserError, match="is no World; there are shop"):
        worlds.world("posttrain_jax.environments.worlds:WORLDS")
    with pytest.raises(UserError, match="No module named 'nowhere'"):
        worlds.world("nowhere:Market")
    with pytest.raises(UserError, match="is no World"):
        worlds.world("shopp")


@pytest.mark.parametrize("level", range(HIGHEST_LEVEL + 1))
def test_demonstrations_are_rewarded(level):
    for seed in range(60):
        record = asyncio.run(worlds.world("shop").demonstrate(level, seed))
        calls = [message for message in record["messages"] if message["role"] == "assistant"]
        assert record["messages"][-1] is calls[-1] and calls[-1]["tool_calls"][0]["function"]["name"] == "pay"

        async def replayed(calls=calls, seed=seed):
            shop = Shop(level)
            await shop.reset(seed)
            return [(await shop.step(message)).reward for message in calls]

        assert asyncio.run(replayed())[-1] == 1.0


def test_demonstrations_stand_among_the_tasks():
    source = sources.open(
        "tasks",
        names=("gcd", "shop"),
        max_level=0,
        system="Be brief.",
        demonstrations={"shop": lambda *where: worlds.demonstration("shop", *where)},
    )
    assert source[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    record = source[1]
    assert record["tools"] and record["messages"][0]["role"] == "user"
    assert record["messages"][0]["content"] == worlds.problem("shop", 0, 0).question
