"""A sampler over a server in another process is as exact as the engine itself."""

import asyncio
import collections
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from posttrain_jax import chat as chats
from posttrain_jax.environments.agent import Agent, Budget, Seeds
from posttrain_jax.environments.shop import Shop
from posttrain_jax.errors import UserError
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Request
from posttrain_jax.rollout.service import Service

pytest.importorskip("httpx2")
pytest.importorskip("starlette")

from starlette.applications import Starlette  # noqa: E402
from starlette.responses import JSONResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from posttrain_jax.rollout.external import External, ExternalError  # noqa: E402
from posttrain_jax.serving import weights as stored  # noqa: E402
from posttrain_jax.serving.app import make_app  # noqa: E402

HM = {"role": "user", "content": "Hm?"}
ASKED = Request((5, 6, 7), seed=11, max_tokens=3)


@pytest.fixture(scope="module")
def chat():
    return chats.for_family("minimax_m2", keep_all_thinking=True)


@pytest.fixture(scope="module")
def talking(arch, chat, make_model):
    return make_model(dataclasses.replace(arch, vocab=chat.tokenizer.size, max_length=2048))


@pytest.fixture(scope="module")
def service(talking, chat):
    often = (*chat.stop_tokens, *range(0, chat.tokenizer.size, 8))  # so that answers end, and episodes go on
    limits = Limits(4, 64, 1600, 4, 4, often, read_chunk=64)
    engine = Engine(talking.arch, limits)
    with Service(engine, engine.load(nnx.state(talking)), reuse=False) as service:
        yield service


@pytest.fixture(scope="module")
def url(service, chat, serve):
    app = make_app(service, chat, "tiny", lambda path: service.engine.load(stored.read(path, service.engine.arch)))
    with serve(app) as url:
        yield url


def run(url, talk, **options):
    async def session():
        async with External(url, backoff=0.001, **options) as sampler:
            return await talk(sampler)

    return asyncio.run(session())


def same(left, right):
    assert left.tokens.tolist() == right.tokens.tolist() and left.finish == right.finish
    assert left.logprobs.tobytes() == right.logprobs.tobytes()
    assert left.versions.tolist() == right.versions.tolist()


def test_it_samples_what_the_service_samples_to_the_bit(url, service):
    rng = np.random.default_rng(0)
    requests = [
        Request(
            rng.integers(0, 200, 3 + i).tolist(), seed=2**32 - 1 - i, max_tokens=1 + 2 * i, temperature=0.5 * (i % 4)
        )
        for i in range(12)
    ]

    def talk(sampler):
        return asyncio.gather(*map(sampler.complete, requests))

    # one by one: with that many positions a neighbour may change the last bit of a sum, here as in the service
    answers, together = run(url, talk, concurrency=1), run(url, talk, concurrency=3)
    for request, answer, other in zip(requests, answers, together, strict=True):
        same(answer, service.submit(request).result())
        assert other.tokens.tolist() == answer.tokens.tolist()


class Chatter(Shop):
    """A shop whose customer goes on whatever is said."""

    async def step(self, message):
        return dataclasses.replace(await super().step(message), messages=[HM], done=False)


def test_an_agent_plays_through_it_token_by_token(url, service, chat):
    budget = Budget(turns=3, tokens=96, answer=32, context=1600)
    environments, seeds = [Shop, Chatter] * 3, [Seeds(i, 10 + i) for i in range(6)]

    def play(sampler):
        agent = Agent(sampler, chat, budget, thinking=False)
        return agent.play_all(environments, seeds, concurrency=1)

    far, near = run(url, play), asyncio.run(play(service))
    assert max(len(segment.turns) for one in far for segment in one.segments) == 3
    for one, other in zip(far, near, strict=True):
        assert (one.ended, one.reward, one.messages) == (other.ended, other.reward, other.messages)
        assert one.segments and len(one.segments) == len(other.segments)
        for left, right in zip(one.segments, other.segments, strict=True):
            assert left.tokens.tolist() == right.tokens.tolist() and left.mask.any()
            assert left.logprobs.tobytes() == right.logprobs.tobytes()


def test_weights_are_pushed(url, service, talking, make_model, tmp_path):
    other = make_model(talking.arch)
    other.head.set_value(other.head.get_value() * 2)
    request = Request((5, 6, 7), seed=1, max_tokens=16)

    async def talk(sampler):
        assert await sampler.healthy()
        before = await sampler.complete(request)
        await sampler.push_weights(other, folder=tmp_path / "other")
        during = await sampler.complete(request)
        await sampler.push_weights(talking, folder=tmp_path / "same")
        return before, during, await sampler.complete(request), sampler.version

    before, during, after, version = run(url, talk)
    assert version == service.version == 2
    assert [set(answer.versions) for answer in (before, during, after)] == [{0}, {1}, {2}]
    assert during.tokens.tolist() != before.tokens.tolist() == after.tokens.tolist()
    expected = Service(service.engine, service.engine.load(nnx.state(other)), version=1, reuse=False)
    with expected:
        same(during, expected.submit(request).result())


def test_a_caller_that_gives_up_frees_the_server(url, service):
    async def talk(sampler):
        task = asyncio.create_task(sampler.complete(Request((5,), 1, 32)))
        while not service._workers[0].load:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while service._workers[0].load:
            await asyncio.sleep(0.001)
        return await sampler.complete(ASKED)

    assert len(run(url, talk).tokens) <= 3


def test_what_the_server_refuses_is_said_once(url):
    with pytest.raises(ExternalError, match="refuses: 400 .*0 tokens"):
        run(url, lambda sampler: sampler.complete(Request((), 0, 1)))
    with pytest.raises(ExternalError, match="404 .*'tiny'"):
        run(url, lambda sampler: sampler.complete(ASKED), model="other")
    with pytest.raises(ValueError, match="routing"):
        run(url, lambda sampler: sampler.complete(dataclasses.replace(ASKED, routing=True)))
    with pytest.raises(UserError, match="known are posttrain_jax, vllm, sglang"):
        External(url, dialect="vlm")


class Stub:
    """A server that says what it is told to: answers by path, the first of them first, the last for ever."""

    def __init__(self, **answers):
        self.answers, self.bodies = answers, collections.defaultdict(list)

    async def answer(self, http):
        name = http.url.path.rsplit("/", 1)[1]
        self.bodies[name].append(await http.json())
        said = self.answers[name]
        said = said.pop(0) if len(said) > 1 else said[0]
        status, body = said if isinstance(said, tuple) else (200, said)
        return JSONResponse(body, status)

    def app(self):
        return Starlette(routes=[Route("/{rest:path}", self.answer, methods=["POST"])])


def plain(**changes):
    choice = {"token_ids": [8, 9, 2], "logprobs": {"token_logprobs": [-1.0, -0.5, -0.25]}, "finish_reason": "stop"}
    return {"choices": [choice | changes]}


def test_what_fails_on_the_way_is_asked_again(serve):
    stub = Stub(completions=[(503, {"error": {"message": "full"}}), (429, {}), (500, "x"), plain()])
    with serve(stub.app()) as url:
        answer = run(url, lambda sampler: sampler.complete(ASKED))
        assert answer.tokens.tolist() == [8, 9, 2] and answer.finish == "stop"
        assert len(stub.bodies["completions"]) == 4
        assert all(body == stub.bodies["completions"][0] for body in stub.bodies["completions"])
        stub.answers["completions"] = [(503, {"error": {"message": "full"}})]
        with pytest.raises(ExternalError, match="failed 3 times, lastly with: 503 full"):
            run(url, lambda sampler: sampler.complete(ASKED), retries=2)
    with pytest.raises(ExternalError, match="failed 2 times, lastly with: Connect"):
        run(url, lambda sampler: sampler.complete(ASKED), retries=1)
    assert not run(url, lambda sampler: sampler.healthy())


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"token_ids": None}, "has no tokens"),
        ({"logprobs": None}, "has no logprobs"),
        ({"token_ids": [8, 9]}, "differ in length"),
        ({"policy_versions": [0]}, "differ in length"),
        ({"token_ids": [], "logprobs": {"token_logprobs": []}}, "0 tokens"),
        ({"token_ids": [8] * 4, "logprobs": {"token_logprobs": [-1] * 4}}, "4 tokens; asked for were 1 to 3"),
        ({"logprobs": {"token_logprobs": [-1.0, None, -1.0]}}, "token 1 has log-probability None"),
        ({"logprobs": {"token_logprobs": [-1.0, 0.5, -1.0]}}, "token 1 has log-probability 0.5"),
        ({"token_ids": [8, "9", 2]}, "token 1 is '9'"),
        ({"prompt_token_ids": [5, 6]}, "another prompt"),
        ({"finish_reason": "abort"}, "'abort'"),
        (None, "not of this dialect"),
    ],
)
def test_an_answer_that_cannot_be_trained_on_is_refused(serve, changes, word):
    stub = Stub(completions=[{"choices": []} if changes is None else plain(**changes)])
    with serve(stub.app()) as url, pytest.raises(ExternalError, match=word):
        run(url, lambda sampler: sampler.complete(ASKED))
    assert len(stub.bodies["completions"]) == 1


def test_other_servers_are_asked_in_their_own_words(serve, tmp_path):
    meta = {"finish_reason": {"type": "length"}, "output_token_logprobs": [[-1.0, 8, None], [-0.5, 9, None]]}
    stub = Stub(
        completions=[plain()],
        collective_rpc=[{"results": [None]}],
        reset_prefix_cache=[{}],
        generate=[{"text": "", "output_ids": [8], "meta_info": meta}],
        update_weights_from_disk=[{"success": True}, {"success": False, "message": "no such folder"}],
    )

    async def talk(sampler):
        first = await sampler.complete(ASKED)
        await sampler.push_weights(tmp_path)
        return first, await sampler.complete(ASKED)

    with serve(stub.app()) as url:
        answers = run(url, talk, dialect="vllm", model="m", version=4)
        assert [set(answer.versions) for answer in answers] == [{4}, {5}]
        assert stub.bodies["completions"][0]["prompt"] == [5, 6, 7]
        assert stub.bodies["completions"][0]["return_token_ids"] and stub.bodies["completions"][0]["model"] == "m"
        assert stub.bodies["collective_rpc"][0]["kwargs"] == {"weights_path": str(tmp_path)}
        assert len(stub.bodies["reset_prefix_cache"]) == 1
        answers = run(url, talk, dialect="sglang")
        assert answers[0].tokens.tolist() == [8, 9] and answers[0].finish == "length"
        assert stub.bodies["generate"][0]["sampling_params"]["sampling_seed"] == 11
        with pytest.raises(ExternalError, match="no such folder"):
            run(url, lambda sampler: sampler.push_weights(tmp_path), dialect="sglang")


def test_it_starts_no_jax():
    code = "import sys, posttrain_jax.rollout.external; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
