"""An engine for the coroutines of one event loop."""

import asyncio
import dataclasses
import time

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.rollout.bank import Bank
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.memory import Memory
from posttrain_jax.rollout.request import Request
from posttrain_jax.rollout.rounds import Rounds, continued

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
def newer(engine, model):
    return engine.load(jax.tree.map(lambda x: x * 1.5, nnx.state(model)))


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(0)
    return [Request(rng.integers(4, 80, 2 + i % 14).tolist(), seed=i, max_tokens=4 + i % 20) for i in range(20)]


def alone(engine, weights, request):
    bank, done = Bank(engine, weights, jax.random.key(0), reuse=False), []
    bank.submit(0, request)
    while not done:
        done = bank.poll()
    return done[0][1]


def bits(completion):
    return completion.tokens.tolist(), completion.logprobs.tobytes(), completion.versions.tolist(), completion.finish


def test_many_coroutines_are_answered_as_if_alone(engine, weights, asked):
    async def all_of_them():
        rounds = Rounds(engine, weights, version=7, reuse=False)
        answers = await asyncio.gather(*map(rounds.complete, asked))
        return answers, rounds.account

    answers, account = asyncio.run(all_of_them())
    for answer, request in zip(answers, asked, strict=True):
        expected = alone(engine, weights, request)
        assert answer.tokens.tolist() == expected.tokens.tolist()
        assert answer.logprobs.tobytes() == expected.logprobs.tobytes()
        assert set(answer.versions) == {7}
    assert account.drawn == sum(len(a.tokens) for a in answers)


def talk(rounds, first, turns, memory=None):
    """A conversation whose next question is a function of what was answered."""

    async def play():
        sampler, prompt, said = memory or rounds, list(first), []
        for turn in range(turns):
            answer = await sampler.complete(Request(tuple(prompt), seed=100 * len(first) + turn, max_tokens=6))
            said.append(answer)
            prompt += [*answer.tokens.tolist(), 5 + turn]
        return said

    return play()


def test_conversations_with_prefixes_used_again_repeat_bit_for_bit(engine, weights):
    async def all_of_them():
        rounds = Rounds(engine, weights)
        said = await asyncio.gather(*(talk(rounds, range(4, 6 + n), 3) for n in range(9)))
        return [bits(answer) for answers in said for answer in answers], rounds.account

    first, account = asyncio.run(all_of_them())
    assert account.reused > 0
    for _ in range(3):
        assert asyncio.run(all_of_them())[0] == first


def test_what_is_under_way_goes_on_under_the_next_weights_and_says_so(engine, weights, newer, asked):
    async def all_of_them():
        rounds = Rounds(engine, weights, version=0)
        tasks = [asyncio.create_task(rounds.complete(request)) for request in asked]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await rounds.pause()
        begun = [part for part in (await rounds.begun()).values() if part is not None]
        assert begun and all(len(part.tokens) for part in begun)
        await rounds.update_weights(newer, 1)
        return await asyncio.gather(*tasks), begun

    answers, begun = asyncio.run(all_of_them())
    of_both = [answer for answer in answers if set(answer.versions) == {0, 1}]
    assert len(of_both) == len(begun)
    for answer in of_both:
        assert sorted(answer.versions) == answer.versions.tolist()
        assert len(answer.tokens) == len(answer.logprobs) == len(answer.versions)
        [part] = [part for part in begun if part.tokens.tolist() == answer.tokens[: len(part.tokens)].tolist()]
        assert part.logprobs.tobytes() == answer.logprobs[: len(part.tokens)].tobytes()
    assert all(len(answer.tokens) <= request.max_tokens for answer, request in zip(answers, asked, strict=True))


def test_the_rest_is_drawn_behind_what_was_drawn_before(engine, weights):
    """As its own request with the joined prompt would be, to the bit."""
    request = Request([5, 6, 7], seed=11, max_tokens=12)
    begun = alone(engine, weights, Request(request.prompt, request.seed, 4))
    begun = dataclasses.replace(begun, versions=np.zeros(len(begun.tokens), np.int32))
    joined = asyncio.run(Rounds(engine, weights, reuse=False).complete(request, begun))
    rest = alone(engine, weights, continued(request, begun))
    assert joined.tokens.tolist() == [*begun.tokens.tolist(), *rest.tokens.tolist()]
    assert joined.logprobs.tobytes() == begun.logprobs.tobytes() + rest.logprobs.tobytes()
    assert continued(request, begun).max_tokens == 8 and continued(request, begun).seed != request.seed


def test_memories_begin_again_where_they_were(engine, weights, newer):
    """Interrupted and saved after every round, three conversations end as they do when nothing is saved."""

    async def undisturbed():
        rounds = Rounds(engine, weights)
        memories = [Memory(rounds) for _ in range(3)]
        tasks = [asyncio.create_task(talk(rounds, range(4, 6 + n), 1 + 2 * n, m)) for n, m in enumerate(memories)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await rounds.pause()
        begun = await rounds.begun()
        saved = [memory.state(begun) for memory in memories]
        await rounds.update_weights(newer, 1)
        return [[bits(a) for a in said] for said in await asyncio.gather(*tasks)], saved

    async def resumed(saved):
        rounds = Rounds(engine, newer, version=1)
        memories = [Memory.restored(one) for one in saved]
        for memory in memories:
            memory.sampler = rounds
        said = await asyncio.gather(*(talk(rounds, range(4, 6 + n), 1 + 2 * n, m) for n, m in enumerate(memories)))
        return [[bits(a) for a in answers] for answers in said]

    expected, saved = asyncio.run(undisturbed())
    versions = {version for said in expected for _, _, drawn, _ in said for version in drawn}
    assert versions == {0, 1}
    assert asyncio.run(resumed(saved)) == expected


def test_a_caller_that_gives_up_frees_its_slot(engine, weights, asked):
    async def given_up():
        rounds = Rounds(engine, weights)
        task = asyncio.create_task(rounds.complete(asked[-1]))
        other = asyncio.create_task(rounds.complete(asked[0]))
        await asyncio.sleep(0)
        task.cancel()
        answer = await other
        assert not await rounds.begun()
        return answer

    assert asyncio.run(given_up()).tokens.tolist() == alone(engine, weights, asked[0]).tokens.tolist()


def test_paused_nothing_is_drawn_and_resumed_the_answers_are_the_same(engine, weights, asked):
    async def halting():
        rounds = Rounds(engine, weights, reuse=False)
        tasks = [asyncio.create_task(rounds.complete(request)) for request in asked[:4]]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await rounds.pause()
        before = rounds.account
        tasks.append(asyncio.create_task(rounds.complete(asked[4])))
        await asyncio.sleep(0.05)
        assert rounds.account == before and not all(task.done() for task in tasks)
        rounds.resume()
        return await asyncio.gather(*tasks)

    found = asyncio.run(halting())
    assert [one.tokens.tolist() for one in found] == [alone(engine, weights, r).tokens.tolist() for r in asked[:5]]


def test_with_turns_only_one_has_a_round_under_way(engine, weights, asked, monkeypatch):
    under_way, most, poll = set(), [], Bank.poll

    def watched(bank):
        under_way.add(bank.engine)
        most.append(len(under_way))
        time.sleep(0.005)
        try:
            return poll(bank)
        finally:
            under_way.discard(bank.engine)

    monkeypatch.setattr(Bank, "poll", watched)
    other = Engine(engine.arch, engine.limits)

    async def both():
        first = Rounds(engine, weights)
        second = Rounds(other, weights, turns=first.turns)
        return await asyncio.gather(*map(first.complete, asked[:4]), *map(second.complete, asked[:4]))

    found = asyncio.run(both())
    assert [one.tokens.tolist() for one in found[:4]] == [one.tokens.tolist() for one in found[4:]]
    assert set(most) == {1}


def test_a_device_that_breaks_is_told_to_everyone(engine, weights, asked, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "_decode", broken)

    async def all_of_them():
        rounds = Rounds(engine, weights)
        return await asyncio.gather(*map(rounds.complete, asked[:3]), return_exceptions=True)

    assert [str(error) for error in asyncio.run(all_of_them())] == ["out of memory"] * 3
