"""Files of conversations as they are learnt: every answer in the form in which it is sampled, and what is said."""

from __future__ import annotations

import json
from functools import partial

import pytest

from posttrain_jax import chat as chats
from posttrain_jax.data import beginnings, checking, pipeline, sources, templates
from posttrain_jax.environments import worlds

TURNS = [
    {"from": "human", "value": "Q1"},
    {"from": "gpt", "value": "A1"},
    {"from": "human", "value": "Q2"},
    {"from": "gpt", "value": "<think>R2</think>A2"},
    {"from": "human", "value": "Q3"},
    {"from": "gpt", "value": "A3"},
]
CONVERSATION = {"conversations": TURNS}
ALPACA = {"instruction": "Add 1 and 1.", "output": "2"}
FAMILIES = {name: chats.for_family(name) for name in chats.FORMATS}
FAMILIES["instruct"] = chats.for_family("kimi_k2", "instruct")


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def learnt(family, path, values):
    return beginnings.learnt(sources.open(write(path, values)), FAMILIES[family])


def trained(family, source):
    """What is trained of each sample, as text."""
    chat, found = FAMILIES[family], []
    for index in range(len(source)):
        tokens, mask = pipeline.CONVERSATIONS.encode(chat, source[index])
        found.append(chat.tokenizer.decode([token for token, counts in zip(tokens, mask, strict=True) if counts]))
    return found


@pytest.mark.parametrize(
    ("family", "samples"),
    [
        ("minimax_m2", ["\n</think>\n\nA1[e~[", "R2\n</think>\n\nA2[e~[", "\n</think>\n\nA3[e~["]),
        ("minimax_m1", ["A1<end_of_sentence><think>\nR2\n</think>\n\nA2<end_of_sentence>"]),
        ("glm_4_6", ["\n<think></think>\nA1<|user|>\n<think>R2</think>\nA2<|user|>"]),
        ("kimi_k2", ["<think></think>A1<|im_end|><think>R2</think>A2<|im_end|>"]),
        ("instruct", ["A1<|im_end|>A2<|im_end|>A3<|im_end|>"]),
    ],
)
def test_every_answer_is_learnt_as_it_is_sampled(family, samples, tmp_path):
    source = learnt(family, tmp_path / "a.jsonl", [CONVERSATION])
    texts = trained(family, source)
    assert texts[: len(samples)] == samples
    assert all(sum(f"A{i}" in text for text in texts) >= 1 for i in (1, 2, 3))
    assert all(source.where(index).endswith("a.jsonl line 1") for index in range(len(source)))
    record, _ = templates.read(CONVERSATION)
    found = checking.sizes(record, "kimi_k2" if family == "instruct" else family)
    if family != "instruct":
        masks = [pipeline.CONVERSATIONS.encode(FAMILIES[family], source[i])[1] for i in range(len(source))]
        assert found == (max(map(len, masks)), sum(map(sum, masks)))


def test_what_is_said_of_answers_without_reasoning(tmp_path):
    values = [CONVERSATION, ALPACA, {**ALPACA, "mode": "non-thinking"}, {"question": "?", "answer": "so #### 2"}]
    source = learnt("minimax_m2", tmp_path / "a.jsonl", values)
    assert isinstance(source, beginnings.Beginnings)
    assert (source.answers, source.bare, len(source)) == (5, 3, 6)
    bare, more = beginnings.remarks(source)
    assert "3 of 5 answers bring no reasoning" in bare and '"mode": "non-thinking"' in bare and "a.jsonl" in bare
    assert "2 more samples than records (4)" in more
    assert trained("minimax_m2", source)[-2] == "2[e~["  # its prompt has the empty thought
    assert beginnings.remarks(learnt("instruct", tmp_path / "b.jsonl", [ALPACA])) == []
    assert beginnings.remarks(learnt("glm_4_6", tmp_path / "c.jsonl", values[-1:])) == []


@pytest.mark.parametrize("shape", ["openai", "sharegpt", "alpaca"])
def test_a_conversation_may_say_that_it_does_not_think(shape):
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    value = {"openai": {"messages": messages}, "sharegpt": CONVERSATION, "alpaca": ALPACA}[shape]
    assert templates.read(value).record.thinking
    record, notes = templates.read({**value, "mode": "non-thinking"})
    assert (record.template, record.thinking, notes) == (shape, False, [])
    assert record.conversation()["thinking"] is False
    with pytest.raises(ValueError, match="mode 'thinkin' is neither"):
        templates.read({**value, "mode": "thinkin"})


def test_checking_notes_an_answer_without_reasoning(tmp_path):
    path = write(tmp_path / "a.jsonl", [ALPACA, {**ALPACA, "mode": "non-thinking"}])
    noted = [outcome.notes for outcome in checking.check(path, "minimax_m2")]
    assert "empty thought" in noted[0][0] and noted[1] == []


@pytest.mark.parametrize("family", ["minimax_m2", "glm_4_6", "kimi_k2", "minimax_m1"])
def test_reasoning_in_the_text_of_a_message_is_reasoning_in_every_family(family, tmp_path):
    said = {"role": "assistant", "content": "<think>\nR\n</think>\n\nA"}
    source = learnt(family, tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "Q"}, said]}])
    (text,) = trained(family, source)
    assert FAMILIES[family].parse(text)["reasoning_content"] == "R" and text.count("think>") <= 2
    assert beginnings.remarks(source) == []


@pytest.mark.parametrize("name", ["calendar", "files", "database", "bank", "shop", "register"])
def test_generated_records_are_one_beginning(name):
    record = partial(worlds.demonstration, name)(1, 3, 0)
    assert FAMILIES["minimax_m2"].beginnings(record["messages"]) == [len(record["messages"])]


def test_generated_records_stay_as_they_are_beside_files(tmp_path):
    path = write(tmp_path / "a.jsonl", [CONVERSATION])
    source = beginnings.learnt(sources.open(["tasks", path], names=["gcd"]), FAMILIES["minimax_m2"])
    assert len(source) == sources.TASK_RECORDS + 3
    assert source[sources.TASK_RECORDS]["messages"][-1]["content"] == "A1"
