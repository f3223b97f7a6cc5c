"""Requests made at the same moment, answered together without threads."""

import asyncio

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.rollout.bank import Bank
from posttrain_jax.rollout.batched import Batched
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Request

LIMITS = Limits(slots=4, max_prompt=16, max_response=12, decode_chunk=4, prefill_batch=4, stop_tokens=(3,))


@pytest.fixture(scope="module")
def engine(arch):
    return Engine(arch, LIMITS, banks=2)


@pytest.fixture(scope="module")
def weights(engine, model):
    return engine.load(nnx.state(model))


def alone(engine, weights, request):
    bank, done = Bank(engine, weights, jax.random.key(0), reuse=False), []
    bank.submit(0, request)
    while not done:
        done = bank.poll()
    return done[0][1]


def test_each_is_answered_of_its_prompt_and_seed_alone(engine, weights):
    rng = np.random.default_rng(0)
    asked = [Request(rng.integers(4, 80, 2 + i).tolist(), 1000 + i, 3 + i, temperature=i % 2) for i in range(9)]
    calls = []

    class Watched:
        check = engine.check

        def complete(self, weights, requests):
            calls.append(len(requests))
            return engine.complete(weights, requests)

    async def nested(sampler):
        async def two(i):
            return await asyncio.gather(*map(sampler.complete, asked[i : i + 2]))

        first = await asyncio.gather(*map(two, range(0, 8, 2)))
        return [one for pair in first for one in pair] + [await sampler.complete(asked[8])]

    answers = asyncio.run(nested(Batched(Watched(), weights)))
    assert calls == [8, 1]
    for answer, request in zip(answers, asked, strict=True):
        expected = alone(engine, weights, request)
        assert answer.tokens.tolist() == expected.tokens.tolist() and len(answer.tokens) <= request.max_tokens
        assert answer.logprobs.tobytes() == expected.logprobs.tobytes()


def test_a_request_that_cannot_be_served_is_told_and_the_others_are_served(engine, weights):
    async def ask():
        sampler = Batched(engine, weights)
        bad, good = Request([], 0, 4), Request([5, 6], 0, 4)
        return await asyncio.gather(sampler.complete(bad), sampler.complete(good), return_exceptions=True)

    bad, good = asyncio.run(ask())
    assert isinstance(bad, ValueError) and len(good.tokens) >= 1


def test_an_engine_that_breaks_down_is_told_to_all(engine, weights):
    class Broken:
        check = engine.check

        def complete(self, weights, requests):
            raise RuntimeError("no memory")

    async def ask():
        sampler = Batched(Broken(), weights)
        asked = (sampler.complete(Request([5], seed, 4)) for seed in range(3))
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [str(one) for one in asyncio.run(ask())] == ["no memory"] * 3
