"""One small model behind one server."""

import dataclasses

import pytest
from flax import nnx

from posttrain_jax import chat as chats
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.service import Service

httpx2 = pytest.importorskip("httpx2")
pytest.importorskip("starlette")

from posttrain_jax.serving import weights as stored  # noqa: E402
from posttrain_jax.serving.app import make_app  # noqa: E402


@pytest.fixture(scope="session")
def chat():
    return chats.for_family("minimax_m2")


@pytest.fixture(scope="session")
def talker(arch, chat):
    return dataclasses.replace(arch, vocab=chat.tokenizer.size)


@pytest.fixture(scope="session")
def talking(talker, make_model):
    return make_model(talker)


@pytest.fixture(scope="module")
def service(talker, talking, chat):
    limits = Limits(
        slots=4,
        max_prompt=96,
        max_response=48,
        decode_chunk=4,
        prefill_batch=4,
        stop_tokens=chat.stop_tokens,
        read_chunk=32,
    )
    engine = Engine(talker, limits)
    with Service(engine, engine.load(nnx.state(talking)), reuse=False) as service:
        yield service


@pytest.fixture(scope="module")
def client(service, chat, serve):
    app = make_app(service, chat, "tiny", lambda path: service.engine.load(stored.read(path, service.engine.arch)))
    with serve(app) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield client
