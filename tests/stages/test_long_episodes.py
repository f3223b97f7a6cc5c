"""An episode of two hundred tool calls is trained like any other response."""

import asyncio
import dataclasses
import itertools
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.data.tasks import Problem
from posttrain_jax.environments.agent import Agent, Budget, Seeds
from posttrain_jax.environments.environment import Observation, Step
from posttrain_jax.environments.tools import Toolbox, tool
from posttrain_jax.optim.adamw import adamw
from posttrain_jax.parallel.logprobs import token_logprobs
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.run.recipe import RL
from posttrain_jax.stages.playing import Played
from posttrain_jax.stages.policy import make_loss
from posttrain_jax.stages.rl import Preparation
from posttrain_jax.stages.step import fresh_state, make_update

sys.path.insert(0, str(Path(__file__).parents[1] / "environments"))
from scripted import Scripted, answer, call  # noqa: E402

CALLS, LENGTH = 205, 24 * 1024


class Counting:
    """Wants to be called ``count`` with 0, 1, 2, …; each right call is worth 1."""

    def __init__(self):
        self.calls, self.toolbox = 0, Toolbox([tool(self.count)])

    def count(self, n: int) -> str:
        """Counts."""
        self.calls += n == self.calls
        return f"next {self.calls}"

    async def reset(self, seed):
        return Observation([{"role": "user", "content": "count"}], self.toolbox.declarations)

    async def step(self, message):
        before = self.calls
        return Step(await self.toolbox.results(message), self.calls - before, self.calls >= CALLS)

    async def close(self):
        pass


def episode(chat, right):
    turns = itertools.count()

    def policy(text, request):
        turn = next(turns)
        return answer("", call("count", n=turn if right else turn + 1))

    budget = Budget(turns=CALLS, tokens=10**6, answer=200, context=LENGTH)
    played = asyncio.run(Agent(Scripted(chat, policy), chat, budget).play(Counting(), Seeds(0, 0)))
    return Played(Problem("counting", 0, 0, "count", "", "", {"seed": 0}), played, played.reward)


@pytest.mark.slow
def test_two_hundred_calls_are_trained_in_the_context_they_were_sampled_in(arch, make_model):
    chat = chats.for_family("minimax_m2", tokenizer=tokenizers.load("tiny"), keep_all_thinking=True)
    group = [episode(chat, right) for right in (True, False)]
    assert [one.reward for one in group] == [CALLS, -0.5]
    assert all(len(one.episode.segments[0].turns) == CALLS for one in group)
    model = make_model(dataclasses.replace(arch, layers=1, vocab=chat.tokenizer.size, max_length=LENGTH))
    graph, weights = nnx.split(model)
    settings = RL(prompts=1, group_size=2, minibatches=1, length=LENGTH, microbatch_rows=1)
    mesh = make_mesh(devices=jax.devices()[:1])
    prepare = Preparation(settings, LENGTH, LENGTH, mesh)
    [minibatch] = prepare.minibatches([group])
    filled, batch, counted = prepare(minibatch, None)
    assert filled == 2 and int(batch["mask"].sum()) == counted == sum(one.length for one in group)

    def likelihood(weights):
        model = nnx.merge(graph, weights)
        hidden = model.hidden(*(batch[name][0] for name in ("tokens", "positions", "segment_ids")))
        logprobs, _ = token_logprobs(hidden, model.head[...], batch["targets"][0])
        return float((logprobs * batch["mask"][0]).sum() / batch["mask"][0].sum())

    optimizer = adamw(1e-3, beta1=0.9, beta2=0.95, epsilon=1e-15, weight_decay=0.0, clip_norm=1.0)
    state = fresh_state(weights, optimizer, mesh)
    update = make_update(optimizer, make_loss(graph, settings), state)
    before = likelihood(state.weights)
    state, numbers = update(state, batch, filled)
    assert np.isfinite(float(numbers["grad_norm"])) and not int(numbers["skipped"])
    assert likelihood(state.weights) > before + 1e-3
