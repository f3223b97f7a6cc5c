"""Budgets of thinking: where it is closed, with which tokens, and what is asked afterwards."""

import types

import numpy as np
import pytest

from posttrain_jax import chat as chats
from posttrain_jax.errors import UserError
from posttrain_jax.rollout.request import Completion, Request
from posttrain_jax.rollout.thinking import complete

FAMILIES = ["minimax_m2", "minimax_m1", "glm_4_6", "kimi_k2"]
ASKED = [{"role": "user", "content": "one and one?"}]


class Scripted:
    """Says ``text`` behind the question, and ``after`` behind closed thinking, as far as it is let."""

    def __init__(self, chat, text, after="2"):
        encode = chat.tokenizer.encode_with_specials
        self.script, self.after = encode(text), [*encode(after), chat.stop_tokens[0]]
        self.question, self.asked = len(prompt(chat)), []

    def complete(self, weights, requests):
        self.asked.append(list(requests))
        return [self.answer(request) for request in requests]

    def answer(self, request):
        said = list(request.prompt[self.question :])
        begun = said == self.script[: len(said)]
        rest = (self.script + self.after[-1:])[len(said) :] if begun else self.after
        tokens = rest[: request.max_tokens]
        finish = "stop" if tokens == rest else "length"
        return Completion(np.array(tokens, np.int32), np.full(len(tokens), -1.0, np.float32), finish)


def prompt(chat):
    return chat.encode(ASKED, add_generation_prompt=True)[0]


def ask(chat, engine, budget, max_tokens=60):
    [found] = complete(engine, None, chat, [Request(prompt(chat), 5, max_tokens, 0.0)], budget)
    return found, chat.tokenizer.decode(found.tokens.tolist())


def opened(chat, thoughts):
    """Thinking as the family begins it behind its generation prompt."""
    opening = chat.thinking_marks()[0]
    rendered = chat.render(ASKED, add_generation_prompt=True)
    return thoughts if rendered.rstrip().endswith(opening) else opening + thoughts


@pytest.mark.parametrize("family", FAMILIES)
def test_thinking_is_closed_as_the_family_writes_it(family):
    chat = chats.for_family(family)
    message = {"role": "assistant", "reasoning_content": "so it is", "content": "two"}
    opening, ending, closing = chat.thinking_marks()
    written = chat.tokenizer.decode(chat.encode([*ASKED, message])[0])
    assert "so it is" + chat.tokenizer.decode(closing) + "two" in written
    assert (opening, ending) == ("<think>", "</think>") and chat.tokenizer.special(ending) in closing


@pytest.mark.parametrize("family", FAMILIES)
def test_thinking_stops_at_the_budget_and_the_answer_follows(family):
    chat = chats.for_family(family)
    engine = Scripted(chat, opened(chat, "9 8 7 6 5 4 3 2 1 0 9 8 7 6 5 4 3 2 1 0"))
    found, text = ask(chat, engine, budget=7)
    closing = chat.thinking_marks()[2]
    assert found.tokens.tolist() == engine.script[:7] + closing + engine.after
    assert found.logprobs.tolist() == [-1.0] * 7 + [0.0] * len(closing) + [-1.0] * len(engine.after)
    assert found.finish == "stop" and chat.parse(text)["content"] == "2" and "errors" not in chat.parse(text)
    (first,), (second,) = engine.asked
    assert first.max_tokens == 7 and second.prompt == [*first.prompt, *engine.script[:7], *closing]
    assert second.max_tokens == 60 - 7 - len(closing) and second.seed != first.seed


def test_an_answer_that_ends_within_the_budget_is_left_alone():
    chat = chats.for_family("minimax_m2")
    engine = Scripted(chat, "so\n</think>\n\n2")
    found, _ = ask(chat, engine, budget=30)
    assert found.tokens.tolist() == engine.script + engine.after[-1:] and engine.asked[1] == []


def test_thinking_that_is_over_by_itself_is_not_closed_again():
    chat = chats.for_family("minimax_m2")
    engine = Scripted(chat, "so\n</think>\n\n" + "1 2 3 4 5 6 7 8 9")
    found, text = ask(chat, engine, budget=len(chat.tokenizer.encode_with_specials("so\n</think>\n\n1 2")))
    assert found.tokens.tolist() == engine.script + engine.after[-1:] and text.count("</think>") == 1


def test_an_answer_that_does_not_think_is_not_closed():
    chat = chats.for_family("glm_4_6")
    engine = Scripted(chat, "1 2 3 4 5 6 7 8 9 10 11")
    found, text = ask(chat, engine, budget=5)
    assert found.tokens.tolist() == engine.script + engine.after[-1:] and "</think>" not in text


@pytest.mark.parametrize("budget, nearest", [(0, "nearest is 1"), (56, "nearest is 55"), (500, "nearest is 55")])
def test_a_budget_leaves_room_for_an_answer(budget, nearest):
    chat = chats.for_family("minimax_m2")
    with pytest.raises(UserError, match=nearest):
        ask(chat, Scripted(chat, "x"), budget)


def test_a_family_that_does_not_think_has_no_budget():
    chat = chats.for_family("kimi_k2", "instruct")
    with pytest.raises(UserError, match="writes no thinking"):
        ask(chat, types.SimpleNamespace(), 5)
