"""The shop: every order can be filled, only the right basket counts; and questions of one turn."""

from __future__ import annotations

import asyncio
import re

import pytest
from scripted import Scripted, answer, call

from posttrain_jax import chat
from posttrain_jax.data import tasks
from posttrain_jax.environments.agent import Agent, Budget, Seeds
from posttrain_jax.environments.shop import HIGHEST_LEVEL, Shop
from posttrain_jax.environments.single_turn import SingleTurn

BUDGET = Budget(turns=20, tokens=4000, answer=200, context=4000)


def buyer(text, look):
    """What an order means, read from its words alone; ``look(item)`` gives price and stock."""
    basket = {}
    for wish in text.removeprefix("Buy ").removesuffix(".").split("; "):
        if found := re.fullmatch(r"as many (\w+) as (\d+) coins buy", wish):
            price, stock = look(found[1])
            basket[found[1]] = min(stock, int(found[2]) // price)
        elif found := re.fullmatch(r"(\d+) of the cheapest of (.+)", wish):
            basket[min(found[2].split(", "), key=lambda item: look(item)[0])] = int(found[1])
        elif found := re.fullmatch(r"(\d+) (\w+), or (\w+) if there are not enough", wish):
            basket[found[2] if look(found[2])[1] >= int(found[1]) else found[3]] = int(found[1])
        else:
            count, item = wish.split()
            basket[item] = int(count)
    return basket


async def shopped(level, seed, change=lambda basket: basket):
    shop = Shop(level)
    observation = await shop.reset(seed)
    read = lambda item: tuple(map(int, re.findall(r"\d+", shop.look(item))))  # noqa: E731
    basket = change(buyer(observation.messages[0]["content"], read))
    calls = [call("add", item=item, count=count) for item, count in basket.items() if count]
    step = await shop.step({"role": "assistant", "content": "", "tool_calls": [*calls, call("pay")]})
    assert step.done and all("error" not in message["content"] for message in step.messages)
    return step.reward


@pytest.mark.parametrize("level", range(HIGHEST_LEVEL + 1))
def test_an_order_has_one_right_basket(level):
    for seed in range(100):
        assert asyncio.run(shopped(level, seed)) == 1.0
        assert asyncio.run(shopped(level, seed, lambda basket: dict(list(basket.items())[1:]))) == 0.0


def test_the_state_lives_through_errors():
    async def episode():
        shop = Shop()
        await shop.reset(3)
        stock = shop.shelves["tea"].stock

        async def say(*calls):
            step = await shop.step({"role": "assistant", "content": "", "tool_calls": list(calls)})
            return [message["content"] for message in step.messages], step

        assert (await say(call("add", item="tea", count=stock + 1)))[0] == [
            f"error: cannot add {stock + 1} tea, {stock} left"
        ]
        assert (await say(call("add", item="te", count=1)))[0][0].startswith(
            "error: item is 'te'; expected one of 'tea'"
        )
        assert (await say(call("add", item="tea", count=1)))[0] == ["basket: 1 tea"]
        assert (await say(call("remove", item="tea", count=1)))[0] == ["basket: empty"]
        assert (await say(call("ad", item="tea")))[0] == ["error: no tool 'ad'; did you mean 'add'?"]
        told, step = await say(call("pay"), call("pay"))
        assert told == ["paid 0", "error: already paid"] and step.done and step.reward == 0.0

    asyncio.run(episode())


def test_an_episode_is_played_in_the_tiny_tokenizer():
    speaker = chat.for_family("minimax_m2", keep_all_thinking=True)

    def policy(text, request):
        order = re.search(r"Buy (\d+) (\w+)\.", text)
        assert order is not None
        done = "basket: " in text
        return answer("", call("pay") if done else call("add", item=order[2], count=int(order[1])), thought="ok")

    for seed in range(5):
        episode = asyncio.run(Agent(Scripted(speaker, policy), speaker, BUDGET).play(Shop(), Seeds(seed, 0)))
        assert (episode.ended, episode.reward) == ("done", 1.0)
        assert len(episode.segments[0]) < 1500


def test_a_question_of_one_turn():
    speaker = chat.for_family("minimax_m2")
    asked = tasks.problem("chain_sum", 0, 7)
    for said, reward in ((asked.answer, 1.0), ("no idea", 0.1)):
        sampler = Scripted(speaker, lambda text, request, said=said: answer(said))
        world = SingleTurn(lambda seed: tasks.problem("chain_sum", 0, seed), format_reward=0.1)
        episode = asyncio.run(Agent(sampler, speaker, BUDGET).play(world, Seeds(7, 0)))
        assert (episode.ended, episode.reward) == ("done", reward)
        assert asked.question in speaker.tokenizer.decode(sampler.requests[0].prompt)
