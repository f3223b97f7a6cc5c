"""Models as generators: what they play is kept only if the world rewards it and the judge passes it."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from posttrain_jax import chat
from posttrain_jax.chat.messages import ChatError
from posttrain_jax.rewards.judges.endpoint import Endpoint, Limits, Refused
from posttrain_jax.rewards.judges.judge import JudgeFailed
from posttrain_jax.rollout.request import Completion
from posttrain_jax.synthesis import expert, models, tasks
from posttrain_jax.synthesis.personas import PERSONAS
from posttrain_jax.synthesis.verbs import VERBS


def solved(index, changes=lambda message: message):
    """A task, and a policy that says what its expert said."""
    task = asyncio.run(tasks.task(index, tuple(VERBS), 0, 3))
    episode = asyncio.run(expert.played(task.world, task.level, task.seed, task.variant))
    answers = [message for message in episode.messages if message["role"] == "assistant"]

    async def policy(messages, tools, seed):
        assert tools == episode.tools
        return changes(answers[sum(message["role"] == "assistant" for message in messages)])

    return task, policy, episode


def attempted(task, policy, **more):
    return asyncio.run(models.attempt(task, policy, "model", turns=more.pop("turns", 30), **more))


def test_what_is_rewarded_is_kept():
    for index in range(10):
        task, policy, episode = solved(index)
        attempt = attempted(task, policy)
        assert attempt.record.messages == episode.messages and attempt.record.reward == 1.0
        assert attempt.record.annotations["provenance"]["generator"] == "model"


def test_what_is_not_has_its_reason():
    task, policy, _ = solved(7)

    async def ends(messages, tools, seed):
        return {"role": "assistant", "content": "Done."}

    async def breaks(messages, tools, seed):
        raise ChatError("no such call")

    async def refused(messages, tools, seed):
        raise Refused("too long")

    async def gone(messages, tools, seed):
        raise JudgeFailed("no route")

    assert attempted(task, ends).reason == "not rewarded"
    assert attempted(task, policy, turns=1).reason == "too many turns"
    assert attempted(task, breaks).reason == "malformed answer"
    assert attempted(task, refused).reason == "refused by the server"
    with pytest.raises(JudgeFailed):
        attempted(task, gone)


def test_a_judge_reads_the_rubrics_and_its_verdict_counts():
    task, policy, _ = solved(3)
    seen = []

    def judge(said):
        async def ask(messages, seed):
            seen.append(messages)
            return said

        return ask

    assert attempted(task, policy, judge=judge("All is well.\nVerdict: pass")).record is not None
    assert all(rubric in seen[0][0]["content"] for rubric in task.rubrics)
    assert "calls " in seen[0][1]["content"]
    assert attempted(task, policy, judge=judge("Verdict: fail")).reason == "against the rubrics"
    for said in ("pass", "Verdict: pass\nVerdict: fail", "Verdict: maybe", ""):
        assert attempted(task, policy, judge=judge(said)).reason == "unreadable verdict"


def test_a_model_plays_the_user():
    task, _, _ = solved(4)
    asked = []

    async def ask(messages, seed):
        asked.append([dict(message) for message in messages])
        return "please help" if len(asked) == 1 else "DONE"

    async def policy(messages, tools, seed):
        assert messages[-1] == {"role": "user", "content": "please help"}
        return {"role": "assistant", "content": "no"}

    user = models.AskedUser(ask, PERSONAS[3])
    assert attempted(task, policy, user=user).reason == "not rewarded"
    assert PERSONAS[3].about in asked[0][0]["content"] and asked[1][-1] == {"role": "user", "content": "no"}


def test_a_sampler_plays_in_its_chats_format():
    speaker = chat.for_family("minimax_m2")
    task, policy, episode = solved(5)
    answers = [message for message in episode.messages if message["role"] == "assistant"]

    class Sampler:
        said = 0

        async def complete(self, request):
            before = [{"role": "user", "content": ""}]
            start = len(speaker.encode(before, None, True, add_generation_prompt=True)[0])
            tokens, mask = speaker.encode([*before, answers[self.said]], None, True)
            self.said += 1
            kept = tokens[start : max(i for i, trained in enumerate(mask) if trained) + 1]
            return Completion(np.asarray(kept, np.int32), np.zeros(len(kept), np.float32), "stop")

    policy = models.of_sampler(Sampler(), speaker, max_tokens=500, temperature=1.0, thinking=True)
    assert attempted(task, policy).record is not None


@pytest.fixture
def served(monkeypatch):
    """Starts a chat-completions server that answers by a function of the request's body."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, message = answer(body)
                said = json.dumps({"choices": [{"message": message}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_):
                """Says nothing on the terminal."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1/chat/completions"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def as_served(message):
    """An assistant's message as a server writes it: arguments are JSON text, calls have ids."""
    functions = [call["function"] for call in message.get("tool_calls", ())]
    calls = [
        {"id": f"c{i}", "type": "function", "function": {**each, "arguments": json.dumps(each["arguments"])}}
        for i, each in enumerate(functions)
    ]
    return {"role": "assistant", "content": message["content"] or None} | ({"tool_calls": calls} if calls else {})


def test_a_model_behind_http_calls_tools(served):
    task, _, episode = solved(6)
    answers = [message for message in episode.messages if message["role"] == "assistant"]

    def answer(body):
        assert body["tools"] == episode.tools
        return 200, as_served(answers[sum(message["role"] == "assistant" for message in body["messages"])])

    with Endpoint(served(answer), model="m", max_tokens=99, limits=Limits(attempts=1)) as endpoint:
        record = attempted(task, models.of_endpoint(endpoint)).record
    called = [message for message in record.messages if message["role"] == "tool"]
    assert record.reward == 1.0 and called and all(message["tool_call_id"] for message in called)


def test_what_a_server_says_is_told_apart(served):
    for status, kind in ((400, Refused), (401, JudgeFailed)):
        url = served(lambda body, status=status: (status, {}))
        with Endpoint(url, model="m", max_tokens=9, limits=Limits(attempts=1)) as endpoint:
            with pytest.raises(JudgeFailed) as raised:
                asyncio.run(endpoint.answer([{"role": "user", "content": "?"}], [], 0))
        assert type(raised.value) is kind
    url = served(lambda body: (200, {"content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}))
    with Endpoint(url, model="m", max_tokens=9, limits=Limits(attempts=1)) as endpoint:
        assert attempted(solved(1)[0], models.of_endpoint(endpoint)).reason == "malformed answer"
