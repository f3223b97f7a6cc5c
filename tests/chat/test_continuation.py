"""A conversation over many turns: what follows a sampled answer, token by token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain_jax import chat

VARIANTS = {
    "kimi_k2": ("kimi_k2", None),
    "kimi_k2 instruct": ("kimi_k2", "instruct"),
    "glm_4_6": ("glm_4_6", None),
    "minimax_m2": ("minimax_m2", None),
    "minimax_m1": ("minimax_m1", None),
}
KEEPING = {name: chat.for_family(*family, keep_all_thinking=True) for name, family in VARIANTS.items()}
RELEASED = {name: chat.for_family(*family) for name, family in VARIANTS.items()}
PROPERTIES = {"x": {"type": "string"}, "n": {"type": "integer"}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": PROPERTIES}}}]

marked = ("<|user|>", "<|im_end|>", "[e~[", "</think>", "<tool_call>", "<end_of_sentence>")
texts = st.lists(st.sampled_from(["a", "7", " ", "\n", "é", "where", *marked]), max_size=6).map("".join)
words = st.text("abc 12", min_size=1, max_size=8).map(str.strip).filter(bool)
calls = st.lists(st.fixed_dictionaries({"x": words, "n": st.integers(0, 99)}), max_size=3)


@st.composite
def turns(draw):
    """Messages that came back, after answers; each answer calls as many tools as results follow."""
    conversation = [{"role": "user", "content": draw(texts)}]
    count = 0
    for _ in range(draw(st.integers(1, 4))):
        answer = {"role": "assistant", "content": draw(words), "reasoning_content": draw(words)}
        news = [{"role": "user", "content": draw(texts)}]
        if arguments := draw(calls):
            answer["tool_calls"] = [
                {"id": f"functions.f:{count + i}", "type": "function", "function": {"name": "f", "arguments": each}}
                for i, each in enumerate(arguments)
            ]
            news = [{"role": "tool", "content": draw(texts)} for _ in arguments]
            count += len(arguments)
        conversation += [answer, *news]
    return conversation


def played(speaker, conversation, thinking):
    """The conversation's tokens as an agent comes by them: each answer appended as it was sampled."""
    answers = [i for i, message in enumerate(conversation) if message["role"] == "assistant"]
    tokens = speaker.encode(conversation[: answers[0]], TOOLS, thinking, add_generation_prompt=True)[0]
    for start, end in zip(answers, [*answers[1:], len(conversation)], strict=True):
        prompt = speaker.encode(conversation[:start], TOOLS, thinking, add_generation_prompt=True)[0]
        whole, mask = speaker.encode(conversation[: start + 1], TOOLS, thinking)
        assert whole[: len(prompt)] == prompt
        sampled = whole[len(prompt) : max(i for i, trained in enumerate(mask) if trained) + 1]
        tokens += sampled + speaker.continuation(conversation[:end], sampled, TOOLS, thinking)
    return tokens


@pytest.mark.parametrize("name", VARIANTS)
@given(turns())
@settings(max_examples=40, deadline=None)
def test_many_turns_are_the_whole_conversation(name, conversation):
    got = played(KEEPING[name], conversation, True)
    assert got == KEEPING[name].encode(conversation, TOOLS, add_generation_prompt=True)[0]


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - {"minimax_m1"}))  # M1's template shows no reasoning at all
@given(turns())
@settings(max_examples=25, deadline=None)
def test_a_tool_loop_is_what_the_released_template_writes(name, conversation):
    loop = [conversation[0], *(message for message in conversation[1:] if message["role"] != "user")]
    loop = [m for m in loop if m["role"] != "assistant" or m.get("tool_calls")]
    if len(loop) > 1:
        got = played(RELEASED[name], loop, True)
        assert got == RELEASED[name].encode(loop, TOOLS, add_generation_prompt=True)[0]


@pytest.mark.parametrize(
    "name", sorted(VARIANTS.keys() - {"minimax_m2"})
)  # M2 drops its empty block from earlier turns
@given(turns())
@settings(max_examples=25, deadline=None)
def test_without_thinking(name, conversation):
    plain = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in conversation]
    assert played(RELEASED[name], plain, False) == RELEASED[name].encode(plain, TOOLS, False, True)[0]


@pytest.mark.parametrize("name", VARIANTS)
@given(turns(), st.lists(st.integers(1, 600), max_size=5))
@settings(max_examples=25, deadline=None)
def test_what_was_sampled_matters_only_by_its_end(name, conversation, sampled):
    """Whatever tokens stand for the answer, what follows is the same, and a missing stop token is put there."""
    speaker = KEEPING[name]
    cut = [token for token in sampled if token not in speaker.stop_tokens]
    after_cut = speaker.continuation(conversation, cut, TOOLS)
    assert after_cut[0] in speaker.stop_tokens
    assert speaker.continuation(conversation, [*cut, after_cut[0]], TOOLS) == after_cut[1:]


def test_a_stop_token_of_the_wrong_role_stays():
    speaker = KEEPING["glm_4_6"]
    conversation = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "r"},
    ]
    for stop in ("<|user|>", "<|endoftext|>"):
        after = speaker.continuation(conversation, [5, speaker.tokenizer.special(stop)], TOOLS)
        expected = "<|observation|>\n<tool_response>\nr\n</tool_response><|assistant|>"
        assert speaker.tokenizer.decode(after) == expected


@pytest.mark.parametrize("news", [[], ["system"]])
def test_refuses_what_no_one_sends_back(news):
    conversation = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(chat.ChatError, match="tool and user"):
        KEEPING["kimi_k2"].continuation([*conversation, *({"role": role, "content": ""} for role in news)], [1])
