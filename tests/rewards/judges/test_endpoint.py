"""A judge behind real HTTP, with all that goes wrong there."""

import asyncio
import socket
import sqlite3

import pytest

from posttrain_jax.rewards.judges.cache import Answers
from posttrain_jax.rewards.judges.endpoint import Endpoint, Limits
from posttrain_jax.rewards.judges.judge import JudgeFailed, Prompted
from posttrain_jax.rewards.judges.rubrics import CORE
from posttrain_jax.rewards.judges.self_critique import rank, win_rates

QUICK = {"timeout": 5.0, "attempts": 4, "backoff": 0.001}


def endpoint(server, cache=None, **limits):
    limits = Limits(**{**QUICK, **limits})
    return Endpoint(server.url, model="critic", max_tokens=64, key="secret", limits=limits, cache=cache)


def ask(place, *questions, seed=0):
    async def all_of_them():
        said = (place.ask([{"role": "user", "content": question}], seed) for question in questions)
        return await asyncio.gather(*said, return_exceptions=True)

    return asyncio.run(all_of_them())


def echo(number, body):
    return body["messages"][0]["content"].upper()


def then(*said):
    """Says these in turn, then answers."""
    return lambda number, body: said[number] if number < len(said) else echo(number, body)


def test_it_asks_as_chat_completions_are_asked(serve):
    server = serve(echo)
    with endpoint(server) as place:
        assert ask(place, "hello", seed=7) == ["HELLO"]
    (seen,) = server.seen
    assert seen["authorization"] == "Bearer secret"
    assert seen["body"] == {
        "model": "critic",
        "max_tokens": 64,
        "temperature": 0.0,
        "seed": 7,
        "messages": [{"role": "user", "content": "hello"}],
    }


BROKEN = [b"", b"{", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": [1]}}]}', b"\xff\xfe"]


@pytest.mark.parametrize("said", [429, 500, 503, *BROKEN])
def test_what_may_pass_is_tried_again(serve, said):
    server = serve(then(said, said))
    with endpoint(server) as place:
        assert ask(place, "hello") == ["HELLO"]
        assert place.answers.calls == len(server.seen) == 3


@pytest.mark.parametrize("said", [429, b"{"])
def test_what_does_not_pass_is_a_failure_with_its_reason(serve, said):
    server = serve(lambda number, body: said)
    with endpoint(server) as place:
        (failure,) = ask(place, "hello")
    assert isinstance(failure, JudgeFailed) and len(server.seen) == 4
    assert ("HTTP 429 not now" if said == 429 else "not a chat completion: b'{'") in str(failure)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_cannot_pass_is_not_tried_again(serve, status):
    server = serve(lambda number, body: status)
    with endpoint(server) as place:
        (failure,) = ask(place, "hello")
    assert f"HTTP {status}" in str(failure) and len(server.seen) == 1


def test_a_slow_answer_is_given_up_and_asked_for_again(serve):
    server = serve(then(1.5))
    with endpoint(server, timeout=0.2) as place:
        assert ask(place, "hello") == ["HELLO"]
    assert len(server.seen) == 2


def test_nobody_there_is_a_failure():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1/chat/completions"
        with Endpoint(url, model="", max_tokens=1, limits=Limits(**QUICK)) as place:
            (failure,) = ask(place, "hello")
    assert isinstance(failure, JudgeFailed) and "refused" in str(failure)


def test_nothing_said_is_an_answer_and_not_a_failure(serve):
    server = serve(lambda number, body: b'{"choices": [{"message": {"content": null}}]}')
    with endpoint(server) as place:
        comparison = asyncio.run(Prompted(place.ask).compare("?", "a", "b", CORE, 0))
    assert comparison.verdict is None and len(server.seen) == 1


def test_no_more_at_once_than_allowed(serve):
    server = serve(echo)
    with endpoint(server, concurrency=3) as place:
        assert ask(place, *map(str, range(30))) == [str(n) for n in range(30)]
    assert server.most_at_once <= 3


def test_no_faster_than_allowed(serve):
    server = serve(echo)
    with endpoint(server, rate=50.0, concurrency=8) as place:
        ask(place, *map(str, range(6)))
    assert max(seen["at"] for seen in server.seen) - min(seen["at"] for seen in server.seen) > 0.05


def test_the_same_question_at_the_same_time_is_one_call(serve):
    server = serve(echo)
    with endpoint(server) as place:
        assert ask(place, "x", "x", "y", "x") == ["X", "X", "Y", "X"]
    assert len(server.seen) == 2


def test_a_run_that_was_killed_asks_only_what_it_did_not_know(serve, tmp_path):
    cache = tmp_path / "judge.sqlite"
    server = serve(lambda number, body: echo(number, body) if number < 3 else 500)
    first = endpoint(server, cache, concurrency=1)
    found = ask(first, *"abcdef")
    assert found[:3] == ["A", "B", "C"] and all(isinstance(one, JudgeFailed) for one in found[3:])
    asked = len(server.seen)  # `first` is never closed: what it knew must be on the disk already
    server.script = echo
    with endpoint(server, cache) as second:
        assert ask(second, *"abcdef") == list("ABCDEF")
        assert second.answers.calls == asked + 3
    assert {seen["body"]["messages"][0]["content"] for seen in server.seen[asked:]} == set("def")
    with endpoint(server, cache) as third:
        assert ask(third, *"abcdef") == list("ABCDEF") and len(server.seen) == asked + 3
        ask(third, "a", seed=1)
    assert len(server.seen) == asked + 4, "another seed is another question"
    first.close()


def test_a_file_cut_short_by_a_crash_keeps_whole_answers(tmp_path):
    path = tmp_path / "judge.sqlite"
    answers = Answers(path)
    answers.put("one", "first")
    half = sqlite3.connect(path, isolation_level=None)
    half.execute("BEGIN IMMEDIATE")
    half.execute("INSERT INTO answers VALUES ('two', 'never committed')")
    half.close()
    again = Answers(path)
    assert (again.get("one"), again.get("two")) == ("first", None)
    answers.close(), again.close()


def test_the_budget_counts_every_try_of_every_run(serve, tmp_path):
    cache = tmp_path / "judge.sqlite"
    server = serve(then(500))
    with endpoint(server, cache, budget=3, concurrency=1) as place:
        first, second, third = ask(place, *"abc")
    assert (first, second) == ("A", "B") and "the budget of 3 calls is spent" in str(third)
    with endpoint(server, cache, budget=3) as place:
        known, unknown = ask(place, "a", "z")
        assert known == "A" and isinstance(unknown, JudgeFailed)
    assert len(server.seen) == 3


def test_a_group_is_ranked_over_http_though_some_of_it_fails(serve):
    def by_length(number, body):
        _, _, _, a, _, b, _ = body["messages"][1]["content"].split("```")
        return 400 if "away" in a + b else f"Verdict: {'A' if len(a) > len(b) else 'B'}"

    with endpoint(serve(by_length)) as place:
        found = asyncio.run(rank(Prompted(place.ask), "?", ["a", "bb", "away", "ccc"], CORE, seed=0))
    assert win_rates(4, found) == [0.0, 0.5, None, 1.0]
