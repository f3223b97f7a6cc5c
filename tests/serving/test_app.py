"""What OpenAI's clients may ask of our engine."""

import json
import threading
import time

import numpy as np
import pytest

from posttrain_jax import hf
from posttrain_jax.rollout.request import Request

httpx2 = pytest.importorskip("httpx2")
HELLO = [{"role": "user", "content": "3 + 4?"}]


def chat_body(**more):
    return {"messages": HELLO, "seed": 7, "max_tokens": 24, "logprobs": True, "return_token_ids": True, **more}


def ask(client, path, body, status=200):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def events(client, path, body):
    with client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def joined(chunks, index):
    """One choice of a stream, put together."""
    whole = {"message": {}, "token_ids": [], "logprobs": [], "text": ""}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                for name, value in choice.get("delta", {}).items():
                    whole["message"][name] = whole["message"].get(name, type(value)()) + value
                whole["text"] += choice.get("text", "")
                whole["token_ids"] += choice["token_ids"]
                told = choice["logprobs"]
                whole["logprobs"] += told.get("content") or told.get("token_logprobs") or []
                whole["finish_reason"] = choice["finish_reason"]
    return whole


def test_a_chat_is_answered_as_the_service_answers_it(client, service, chat):
    said = ask(client, "/v1/chat/completions", chat_body())
    prompt = chat.encode(HELLO, add_generation_prompt=True)[0]
    expected = service.submit(Request(prompt, 7, 24)).result()
    (choice,) = said["choices"]
    assert said["prompt_token_ids"] == prompt and choice["token_ids"] == expected.tokens.tolist()
    told = np.asarray([entry["logprob"] for entry in choice["logprobs"]["content"]], np.float32)
    assert told.tobytes() == expected.logprobs.tobytes()
    read = chat.parse(chat.tokenizer.decode(expected.tokens.tolist()))
    assert choice["message"] == {name: read[name] for name in ("role", "content", "reasoning_content")}
    assert choice["finish_reason"] == expected.finish
    assert choice["policy_versions"] == [0] * len(expected.tokens)
    drawn = len(expected.tokens)
    assert said["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": drawn,
        "total_tokens": len(prompt) + drawn,
    }


def test_a_stream_adds_up_to_the_whole_answer(client):
    body = chat_body(n=3, max_tokens=40)
    whole = ask(client, "/v1/chat/completions", body)
    chunks = events(client, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert chunks[-1]["usage"] == whole["usage"] and chunks[-1]["choices"] == []
    assert len(chunks) > 10
    for index, choice in enumerate(whole["choices"]):
        streamed = joined(chunks, index)
        assert {"content": "", "reasoning_content": "", **streamed["message"]} == choice["message"]
        assert streamed["token_ids"] == choice["token_ids"]
        assert streamed["logprobs"] == choice["logprobs"]["content"]
        assert streamed["finish_reason"] == choice["finish_reason"]


def test_a_plain_stream_adds_up_too(client):
    body = {"prompt": "one, two,", "seed": 3, "max_tokens": 30, "n": 2, "logprobs": 0, "return_token_ids": True}
    whole, chunks = ask(client, "/v1/completions", body), events(client, "/v1/completions", body)
    for index, choice in enumerate(whole["choices"]):
        streamed = joined(chunks, index)
        assert streamed["text"] == choice["text"] and streamed["token_ids"] == choice["token_ids"]
        assert streamed["logprobs"] == choice["logprobs"]["token_logprobs"]


def test_text_and_its_token_ids_are_the_same_prompt(client, chat):
    ids = chat.tokenizer.encode("one, two,")
    body = {"seed": 3, "max_tokens": 12, "return_token_ids": True}
    both = ask(client, "/v1/completions", {**body, "prompt": ["one, two,", "three"]})["choices"]
    alone = ask(client, "/v1/completions", {**body, "prompt": ids})["choices"][0]
    assert both[0]["token_ids"] == alone["token_ids"] and both[0]["prompt_token_ids"] == ids
    assert both[1]["prompt_token_ids"] == chat.tokenizer.encode("three")


def test_a_seed_decides_and_choices_differ(client):
    first = [choice["token_ids"] for choice in ask(client, "/v1/chat/completions", chat_body(n=3))["choices"]]
    assert [c["token_ids"] for c in ask(client, "/v1/chat/completions", chat_body(n=3))["choices"]] == first
    assert len(set(map(tuple, first))) == 3
    assert ask(client, "/v1/chat/completions", chat_body())["choices"][0]["token_ids"] == first[0]
    seedless = {name: value for name, value in chat_body().items() if name != "seed"}
    drawn = [ask(client, "/v1/chat/completions", seedless)["choices"][0]["token_ids"] for _ in range(2)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    "path, body, status, word",
    [
        ("/v1/chat/completions", {}, 400, "messages is missing"),
        ("/v1/chat/completions", {"messages": [{"role": "boss", "content": ""}]}, 400, "expected one of"),
        ("/v1/chat/completions", chat_body(temperature="hot"), 400, "temperature='hot'"),
        ("/v1/chat/completions", chat_body(temperature=-1), 400, "temperature=-1"),
        ("/v1/chat/completions", chat_body(n=0), 400, "n=0"),
        ("/v1/chat/completions", chat_body(stop=["x"]), 400, "stop"),
        ("/v1/chat/completions", chat_body(top_p=0.5), 400, "top_p=0.5"),
        ("/v1/chat/completions", chat_body(seed=-1), 400, "seed=-1"),
        ("/v1/chat/completions", chat_body(model="other"), 404, "'tiny'"),
        ("/v1/chat/completions", chat_body(messages=[{"role": "user", "content": "x " * 200}]), 400, "tokens"),
        ("/v1/completions", {"prompt": [5, 10**6]}, 400, "token 1 of the prompt"),
        ("/v1/completions", {"prompt": []}, 400, "0 tokens"),
        ("/v1/completions", {"prompt": [5], "logprobs": 5}, 400, "logprobs=5"),
        ("/update_weights", {"path": "/nowhere"}, 400, "neither safetensors nor checkpoints"),
        ("/nowhere", {}, 404, "Not Found"),
        ("/health", {}, 405, "Method Not Allowed"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(client, path, body, status, word):
    error = ask(client, path, body, status)["error"]
    assert word in error["message"] and error["type"] == "invalid_request_error"


def test_a_body_that_is_no_json_object_is_refused(client):
    for content in ("{", "[]"):
        answer = client.post("/v1/completions", content=content)
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_models_and_health(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", 144)
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_takes_its_requests_with_it(client, service, stream):
    worker, go_on, entered = service._workers[0], threading.Event(), threading.Event()
    poll, drawn = worker.bank.poll, service.account.drawn

    def slow():
        entered.set()
        go_on.wait(30)
        return poll()

    worker.bank.poll = slow
    try:
        body = {"prompt": [5, 6], "seed": 1, "n": 9, "stream": stream}
        with pytest.raises(httpx2.TimeoutException):
            with client.stream("POST", "/v1/completions", json=body, timeout=1) as answer:
                answer.read()
        assert entered.wait(30)
        until(lambda: all(future.cancelled() for future, _ in list(worker._open.values())))
        go_on.set()
        until(lambda: worker.load == 0)
        assert service.account.drawn - drawn <= 4 * 4  # of 9 × 48 tokens no more than the chunk that was under way
    finally:
        go_on.set()
        worker.bank.poll = poll


def until(true):
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_weights_change_under_load(client, service, talking, make_model, talker, tmp_path):
    hf.save(talking, tmp_path / "same")
    other = make_model(talker)
    other.head.set_value(other.head.get_value() * 2)
    hf.save(other, tmp_path / "other")
    before = ask(client, "/v1/chat/completions", chat_body())["choices"][0]
    answers, bodies = [], [chat_body(seed=seed, max_tokens=48) for seed in range(24)]

    def load():
        answers.extend(ask(client, "/v1/chat/completions", body) for body in bodies)

    thread = threading.Thread(target=load)
    thread.start()
    until(lambda: len(answers) > 2)
    update = {"path": str(tmp_path / "other"), "version": 5}
    assert ask(client, "/update_weights", update) == {"success": True, "policy_version": 5}
    assert ask(client, "/update_weights", update)["policy_version"] == 5  # asked again, done once
    assert "has 5 already" in ask(client, "/update_weights", {**update, "version": 4}, 400)["error"]["message"]
    thread.join()
    versions = np.concatenate([answer["choices"][0]["policy_versions"] for answer in answers])
    assert len(answers) == 24 and (np.diff(versions) >= 0).all() and set(versions) <= {0, 5}
    later = ask(client, "/v1/chat/completions", chat_body())["choices"][0]
    assert later["token_ids"] != before["token_ids"] and set(later["policy_versions"]) == {5}
    assert ask(client, "/update_weights", {"path": str(tmp_path / "same")})["policy_version"] == 6
    again = ask(client, "/v1/chat/completions", chat_body())["choices"][0]
    assert again["token_ids"] == before["token_ids"] and again["logprobs"] == before["logprobs"]


def test_openai_s_own_client_understands_it(client):
    openai = pytest.importorskip("openai")
    theirs = openai.OpenAI(base_url=f"{client.base_url}v1", api_key="none")
    body = {"model": "tiny", "messages": HELLO, "seed": 7, "max_tokens": 24}
    whole = theirs.chat.completions.create(**body).choices[0].message.reasoning_content
    pieces = [chunk.choices[0].delta for chunk in theirs.chat.completions.create(**body, stream=True)]
    assert "".join(getattr(piece, "reasoning_content", None) or "" for piece in pieces) == whole
    with pytest.raises(openai.NotFoundError):
        theirs.chat.completions.create(**{**body, "model": "other"})


def test_a_service_that_has_broken_down_is_unavailable(client, service):  # the last: nothing answers after it
    service._workers[0].bank.poll = lambda: 1 / 0
    error = ask(client, "/v1/chat/completions", chat_body(), 503)["error"]
    assert "ZeroDivisionError" in error["message"] and error["type"] == "server_error"
    assert client.get("/health").status_code == 503
    with client.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as answer:
        assert "broken down" in answer.read().decode()
