"""What SFT trains is what sampling writes: every trained answer stands right behind its generation prompt."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain_jax import chat

FAMILIES = {
    "kimi_k2": ("kimi_k2", None),
    "kimi_k2 instruct": ("kimi_k2", "instruct"),
    "glm_4_6": ("glm_4_6", None),
    "minimax_m2": ("minimax_m2", None),
    "minimax_m1": ("minimax_m1", None),
}
SPEAKERS = {
    (name, keep): chat.for_family(*family, keep_all_thinking=keep)
    for name, family in FAMILIES.items()
    for keep in (False, True)
}
TOOLS = [{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}

words = st.text("ab 7", min_size=1, max_size=6).map(str.strip).filter(bool)
thoughts = st.none() | st.just("") | words


@st.composite
def records(draw):
    """User messages, each answered after up to two calls of a tool; some answers with reasoning, some without."""
    messages = [{"role": "system", "content": "s"}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(words)})
        for calls in [*([[CALL]] * draw(st.integers(0, 2))), []]:
            thought = draw(thoughts)
            said = {"role": "assistant", "content": draw(words)} | ({"tool_calls": calls} if calls else {})
            messages.append(said if thought is None else {**said, "reasoning_content": thought})
            messages += [{"role": "tool", "content": draw(words)} for _ in calls]
    return messages


def answers_of(messages):
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def sampled(speaker, messages, index, thinking, prompt):
    """The answer's tokens behind its prompt, to the stop token."""
    tokens, mask = speaker.encode(messages[: index + 1], TOOLS, thinking)
    assert tokens[: len(prompt)] == prompt
    return tokens[len(prompt) : max(i for i, trained in enumerate(mask) if trained) + 1]


def prompts(name, keep, messages, thinking):
    """Each answer's prompt as sampling comes by it, and the answer.

    A new user message is a new prompt, unless all thinking is kept; a tool's result follows what was sampled. M1's
    template shows no reasoning of earlier answers, so there a result makes a new prompt as well.
    """
    speaker, found, prompt = SPEAKERS[name, keep], {}, []
    news_follow = keep or name != "minimax_m1"
    for index in answers_of(messages):
        new = messages[index - 1]["role"] == "user" and not keep
        if new or not news_follow or not prompt:
            prompt = speaker.encode(messages[:index], TOOLS, thinking, add_generation_prompt=True)[0]
        answer = sampled(speaker, messages, index, thinking, prompt)
        found[index] = prompt, answer
        following = next((i for i in answers_of(messages) if i > index), None)
        if following:
            prompt = prompt + answer + speaker.continuation(messages[:following], answer, TOOLS, thinking)
    return found


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize(("name", "keep"), SPEAKERS)
@given(messages=records())
@settings(max_examples=40, deadline=None)
def test_what_is_trained_is_what_is_sampled(name, keep, thinking, messages):
    speaker = SPEAKERS[name, keep]
    if not thinking:  # then nothing was thought
        messages = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in messages]
    expected = prompts(name, keep, messages, thinking)
    taught = set()
    for length in speaker.beginnings(messages, thinking):
        tokens, mask = speaker.encode(messages[:length], TOOLS, thinking)
        learnt = speaker.format.learnt(messages[:length], thinking)
        for index in learnt:
            prompt, answer = expected[index]
            assert tokens[: len(prompt) + len(answer)] == prompt + answer
            assert all(mask[len(prompt) : len(prompt) + len(answer)])
            assert answer[-1] in speaker.stop_tokens
        assert sum(mask) == sum(len(expected[index][1]) for index in learnt)
        taught |= learnt
    assert taught == set(answers_of(messages))


@pytest.mark.parametrize(("name", "keep"), SPEAKERS)
@given(messages=records())
@settings(max_examples=25, deadline=None)
def test_one_beginning_is_enough_where_nothing_is_taken_out(name, keep, messages):
    speaker = SPEAKERS[name, keep]
    bare = not any(message.get("reasoning_content") for message in messages)
    if keep or not speaker.thinks or (bare and name != "minimax_m2"):
        assert speaker.beginnings(messages) == [len(messages)]
    ends = speaker.beginnings(messages)
    assert ends == sorted(set(ends)) and ends[-1] == len(messages)


BARE = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    ("name", "opening", "answer"),
    [
        ("minimax_m2", "]~b]ai\n<think>\n", "\n</think>\n\nA[e~["),
        ("glm_4_6", "<|assistant|>", "\n<think></think>\nA<|user|>"),
        ("kimi_k2", "<|im_assistant|>assistant<|im_middle|>", "<think></think>A<|im_end|>"),
        ("kimi_k2 instruct", "<|im_assistant|>assistant<|im_middle|>", "A<|im_end|>"),
        ("minimax_m1", "<beginning_of_sentence>ai name=assistant\n", "A<end_of_sentence>"),
    ],
)
def test_an_answer_without_reasoning_is_one_that_thought_nothing(name, opening, answer):
    speaker = SPEAKERS[name, False]
    tokens, mask = speaker.encode(BARE)
    first, last = mask.index(1), len(mask) - mask[::-1].index(1)
    assert speaker.tokenizer.decode(tokens[:first]).endswith(opening)
    assert speaker.tokenizer.decode(tokens[first:last]) == answer and all(mask[first:last])
    assert speaker.parse(answer)["reasoning_content"] == ""


@pytest.mark.parametrize(("name", "keep"), SPEAKERS)
def test_who_thinks(name, keep):
    assert SPEAKERS[name, keep].thinks == (name != "kimi_k2 instruct")
