"""A user between the agent and its task."""

import asyncio
import re

import pytest
from scripted import Scripted, answer, call

from posttrain_jax import chat
from posttrain_jax.environments.agent import Agent, Budget, Seeds
from posttrain_jax.environments.shop import Shop
from posttrain_jax.environments.user import SimulatedUser, WithUser

SPEAKER = chat.for_family("minimax_m2", keep_all_thinking=True)
OTHER = chat.for_family("kimi_k2", "instruct")  # a user of another family than the agent's


def user(says):
    replies = iter(says)

    def policy(text, request):
        wish = re.findall(r"What you want: Buy (\d+) (\w+)\.", text)[0]
        return {"role": "assistant", "content": next(replies).format(*wish)}

    sampler = Scripted(OTHER, policy)
    return SimulatedUser(sampler, OTHER, persona="in a hurry", max_tokens=100), sampler


def play(says, answers):
    someone, sampler = user(says)
    turns = iter(answers)

    def policy(text, request):
        return next(turns)(text)

    agent = Agent(Scripted(SPEAKER, policy), SPEAKER, Budget(20, 4000, 200, 4000))
    return asyncio.run(agent.play(WithUser(Shop(), someone), Seeds(4, 0))), sampler


def bought(text):
    count, item = re.findall(r"(\d+) please|I want some (\w+)", text)[1][0], re.findall(r"some (\w+)", text)[0]
    return answer("", call("add", item=item, count=int(count)), call("pay"))


def test_the_task_comes_out_by_asking():
    episode, sampler = play(["I want some {1}", "{0} please"], [lambda text: answer("How many?", thought="hm"), bought])
    assert (episode.ended, episode.reward) == ("done", 1.0)
    assert [message["role"] for message in episode.messages] == ["user", "assistant", "user", "assistant"]
    seen = OTHER.tokenizer.decode(sampler.requests[1].prompt)
    assert "How many?" in seen and "hm" not in seen and "in a hurry" in seen
    assert len({request.seed for request in sampler.requests}) == 2
    (segment,) = episode.segments  # one conversation over the user's turns, reasoning kept
    assert [turn.finish for turn in segment.turns] == ["stop", "stop"]
    assert "hm" in SPEAKER.tokenizer.decode(segment.tokens)


def test_a_user_who_leaves_ends_it():
    episode, _ = play(["I want some {1}", "DONE"], [lambda text: answer("We are closed.")])
    assert (episode.ended, episode.reward, episode.info["paid"]) == ("done", 0.0, False)


def test_a_task_without_a_user_is_refused():
    class Silent(Shop):
        async def reset(self, seed):
            observation = await super().reset(seed)
            return type(observation)([{"role": "system", "content": "x"}], observation.tools)

    with pytest.raises(ValueError, match="expected user"):
        asyncio.run(WithUser(Silent(), user([])[0]).reset(0))
