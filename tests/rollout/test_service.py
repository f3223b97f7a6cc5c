"""An engine that is always on."""

import asyncio
import threading

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.rollout.bank import Bank
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Request
from posttrain_jax.rollout.service import Service

LIMITS = Limits(
    slots=4, max_prompt=16, max_response=24, decode_chunk=4, prefill_batch=4, stop_tokens=(3,), read_chunk=8
)


@pytest.fixture(scope="module")
def engine(arch):
    return Engine(arch, LIMITS, banks=2)


@pytest.fixture(scope="module")
def weights(engine, model):
    return engine.load(nnx.state(model))


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(0)
    return [Request(rng.integers(4, 80, 2 + i % 14).tolist(), seed=i, max_tokens=4 + i % 20) for i in range(40)]


def one_by_one(engine, weights, requests):
    answers = []
    for request in requests:
        bank, done = Bank(engine, weights, jax.random.key(0), reuse=False), []
        bank.submit(0, request)
        while not done:
            done = bank.poll()
        answers.append(done[0][1])
    return answers


def test_many_callers_at_once_are_answered_as_if_alone(engine, weights, asked):
    async def all_of_them(service):
        return await asyncio.gather(*map(service.complete, asked))

    with Service(engine, weights, reuse=False) as service:
        answers = asyncio.run(all_of_them(service))
    for answer, expected in zip(answers, one_by_one(engine, weights, asked), strict=True):
        assert answer.tokens.tolist() == expected.tokens.tolist()
        assert answer.logprobs.tobytes() == expected.logprobs.tobytes()
        assert set(answer.versions) == {0}
    assert service.account.drawn == sum(len(a.tokens) for a in answers)


def test_weights_change_underway(engine, weights, asked):
    other = jax.tree.map(lambda x: x * 1.1, weights)

    async def talk(service):
        waiting = [asyncio.create_task(service.complete(request)) for request in asked]
        await waiting[0]
        await asyncio.to_thread(service.update_weights, other, 1)
        return await asyncio.gather(*waiting), await service.complete(asked[0])

    with Service(engine, weights) as service:
        answers, later = asyncio.run(talk(service))
    assert set(answers[0].versions) == {0} and set(later.versions) == {1} == set(answers[-1].versions)
    assert all((np.diff(answer.versions) >= 0).all() for answer in answers)


def test_a_caller_that_gives_up_frees_its_slot(engine, weights, asked):
    async def talk(service):
        task = asyncio.create_task(service.complete(asked[19]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await service.complete(asked[4])

    with Service(engine, weights) as service:
        asyncio.run(talk(service))
        service.update_weights(weights, 1)  # which comes after everything else
        assert all(worker.load == 0 and not worker.bank.busy for worker in service._workers)


def test_what_was_cancelled_is_gone_before_whatever_is_asked_next(engine, weights, asked):
    polling, go_on, loads = threading.Event(), threading.Event(), []
    with Service(engine, weights) as service:
        (worker, *_) = service._workers
        poll = worker.bank.poll

        def slow():
            polling.set()
            go_on.wait()
            return poll()

        worker.bank.poll = slow
        future = worker.submit(asked[19], None)
        polling.wait()
        future.cancel()
        done = worker.call(lambda bank: loads.append((worker.load, bank.busy)))
        go_on.set()
        done.result()
    assert loads == [(0, False)]


def test_tokens_are_shown_as_they_come(engine, weights, asked):
    seen = []
    with Service(engine, weights) as service:
        answer = service.submit(asked[19], lambda tokens, logprobs: seen.append((tokens, logprobs))).result()
    assert len(seen) >= 3
    for tokens, logprobs in seen:
        np.testing.assert_array_equal(answer.tokens[: len(tokens)], tokens)
        np.testing.assert_array_equal(answer.logprobs[: len(logprobs)], logprobs)


def test_what_goes_wrong_is_said_to_those_who_wait(engine, weights, asked):
    with Service(engine, weights) as service:
        with pytest.raises(ValueError, match="0 tokens"):
            service.submit(Request([], 0, 1))
        for worker in service._workers:
            worker.bank.poll = lambda: 1 / 0
        for request in asked[:2]:
            with pytest.raises(RuntimeError, match="broken down: ZeroDivisionError"):
                service.submit(request).result()
    with pytest.raises(RuntimeError, match="broken down"):
        service.submit(asked[0]).result()
    with pytest.raises(RuntimeError, match="broken down"):
        service.update_weights(weights, 1)
    assert not any("rollout bank" in thread.name for thread in threading.enumerate())
