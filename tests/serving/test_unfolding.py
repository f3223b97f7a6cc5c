"""What is told while an answer is written adds up to the answer, whatever is written."""

import asyncio
import json
import types
from concurrent.futures import Future

import numpy as np
import pytest

from posttrain_jax import chat as chats
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.request import Completion

httpx2 = pytest.importorskip("httpx2")
pytest.importorskip("starlette")

from posttrain_jax.serving.app import make_app  # noqa: E402
from posttrain_jax.serving.unfolding import UnfoldingMessage, text_of  # noqa: E402

FAMILIES = ("kimi_k2", "glm_4_6", "minimax_m2", "minimax_m1")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 4}}}


def told(chat, tokens, thinking, cuts):
    unfolding, fields, pieces = UnfoldingMessage(chat, TOOLS, thinking), {"content": "", "reasoning_content": ""}, 0
    message = chat.parse(text_of(chat, tokens, final=True), TOOLS, thinking)
    for delta in [*(unfolding.more(tokens[:cut]) for cut in cuts), unfolding.end(message)]:
        pieces += bool(delta)
        for name in fields:
            fields[name] += delta.get(name, "")
    return message, fields, pieces


def written(chat, message, thinking=True):
    """The tokens that an answer is sampled in."""
    before = [{"role": "user", "content": ""}]
    start = len(chat.encode(before, TOOLS, thinking, add_generation_prompt=True)[0])
    tokens, mask = chat.encode([*before, message], TOOLS, thinking)
    return tokens[start : max(i for i, trained in enumerate(mask) if trained) + 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_anything_that_a_model_may_write(family):
    chat, rng = chats.for_family(family), np.random.default_rng(0)
    marks = [chat.tokenizer.specials[name] for name in chat.format.special_tokens if name in chat.tokenizer.specials]
    spelled = [chat.tokenizer.encode(name) for name in (chat.format.call_mark, *chat.format.special_tokens)]
    answer = written(chat, {"role": "assistant", "content": "So.", "reasoning_content": "Hm", "tool_calls": [CALL]})
    pieces = [[mark] for mark in marks] + spelled + [answer, chat.tokenizer.encode("\n"), chat.tokenizer.encode(" é ")]
    for trial in range(60):
        tokens = []
        for _ in range(rng.integers(1, 6)):
            some = rng.integers(0, chat.tokenizer.size, rng.integers(1, 4)).tolist()
            tokens += pieces[rng.integers(len(pieces))] if rng.random() < 0.6 else some
        message, fields, _ = told(chat, tokens, bool(trial % 2), range(1, len(tokens)))
        assert fields == {name: message[name] for name in fields}, chat.tokenizer.decode(tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ordinary_answer_is_told_while_it_is_written(family):
    chat = chats.for_family(family)
    text = "The sum of three and four is found by counting on from the larger: five, six, seven."
    tokens = written(chat, {"role": "assistant", "content": text, "reasoning_content": text})
    message, fields, pieces = told(chat, tokens, True, range(1, len(tokens)))
    assert fields["content"] == text == message["content"] and pieces > len(tokens) // 3


class Writes:
    """A service whose answers are written beforehand."""

    def __init__(self, arch, chat, tokens):
        limits = Limits(4, 400, 100, 4, 4, chat.stop_tokens)
        self.engine = types.SimpleNamespace(arch=arch, limits=limits, check=lambda request: None)
        self.version, self.ended, self.asked = 0, "", []
        self._completion = Completion(np.asarray(tokens, np.int32), np.zeros(len(tokens), np.float32), "stop")

    def submit(self, request, watch=None):
        self.asked.append(request)
        if watch:
            for end in range(4, len(self._completion.tokens), 4):
                watch(self._completion.tokens[:end], self._completion.logprobs[:end])
        future = Future()
        future.set_result(self._completion)
        return future

    async def complete(self, request):
        return await asyncio.wrap_future(self.submit(request))


def test_calls_of_tools_go_both_ways(talker, chat, serve):
    answer = {"role": "assistant", "content": "I add.", "reasoning_content": "Adding", "tool_calls": [CALL, CALL]}
    service = Writes(talker, chat, written(chat, answer))
    question = {"role": "user", "content": "3 + 4?"}
    body = {"messages": [question], "tools": TOOLS, "seed": 1}
    with serve(make_app(service, chat, "tiny", None)) as url, httpx2.Client(base_url=url) as client:
        (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
        message = choice["message"]
        assert choice["finish_reason"] == "tool_calls" and message["content"] == "I add."
        assert message["reasoning_content"] == "Adding"
        assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [{"a": 3, "b": 4}] * 2
        assert len({call["id"] for call in message["tool_calls"]}) == 2

        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as stream:
            lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
        choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
        assert choices[-1]["finish_reason"] == "tool_calls"
        calls = choices[-1]["delta"]["tool_calls"]
        assert [(c["index"], c["function"]) for c in calls] == [
            (i, c["function"]) for i, c in enumerate(message["tool_calls"])
        ]
        assert "".join(c["delta"].get("content", "") for c in choices) == "I add."

        results = [{"role": "tool", "tool_call_id": c["id"], "content": "7"} for c in message["tool_calls"]]
        talk = {**body, "messages": [question, message, *results], "tool_choice": "auto"}
        assert client.post("/v1/chat/completions", json=talk).status_code == 200
        expected = [question, answer, *({"role": "tool", "content": "7"} for _ in results)]
        assert service.asked[-1].prompt == chat.encode(expected, TOOLS, add_generation_prompt=True)[0]
        client.post("/v1/chat/completions", json={**body, "tool_choice": "none"})
        assert service.asked[-1].prompt == chat.encode([question], add_generation_prompt=True)[0]
