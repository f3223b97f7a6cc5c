"""A Gymnasium environment is played as it is."""

import asyncio

import pytest
from scripted import Scripted, answer

from posttrain_jax import chat
from posttrain_jax.environments.agent import Agent, Budget, Seeds
from posttrain_jax.environments.gym import GymEnvironment

gymnasium = pytest.importorskip("gymnasium")


class Guess(gymnasium.Env):
    """A number from 0 to 9 is to be found."""

    observation_space = gymnasium.spaces.Text(20)
    action_space = gymnasium.spaces.Discrete(10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.wanted = int(self.np_random.integers(10))
        return "guess", {}

    def step(self, action):
        told = "higher" if action < self.wanted else "lower" if action > self.wanted else "right"
        return told, float(told == "right"), told == "right", False, {"guess": action}


def test_played_to_its_end():
    speaker = chat.for_family("glm_4_6", keep_all_thinking=True)

    def policy(text, request):
        told = text.split("<|user|>")[1:]
        return answer("a number?" if len(told) == 1 else str(len(told) - 2))

    agent = Agent(Scripted(speaker, policy), speaker, Budget(turns=20, tokens=2000, answer=100, context=4000))
    for seed in range(4):
        gym = gymnasium.wrappers.TimeLimit(Guess(), max_episode_steps=8)
        world = GymEnvironment(gym, instructions="Answer with a digit.", action=int)
        episode = asyncio.run(agent.play(world, Seeds(seed, 0)))
        wanted = gym.unwrapped.wanted
        assert episode.ended == "done" and episode.info["truncated"] == (wanted > 7)
        assert episode.reward == float(wanted <= 7) and episode.info["guess"] == min(wanted, 7)
        assert episode.messages[0]["content"] == "Answer with a digit."
        assert episode.messages[3]["content"].startswith("error: invalid literal")
        assert len(episode.rewards) == min(wanted, 7) + 2
