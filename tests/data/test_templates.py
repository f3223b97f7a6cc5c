"""Templates: every shape of training data becomes a canonical record, a conversation, tokens, and itself again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain_jax import chat as chats
from posttrain_jax.data import pipeline, records, sources, templates
from posttrain_jax.data.checking import chat_of, family_of
from posttrain_jax.data.records import Record
from posttrain_jax.data.templates import pseudo_calls
from posttrain_jax.data.templates.reward_words import reward

EXAMPLES = Path(__file__).parents[2] / "configs" / "examples"
NUMBERED = [f"T{number:02}" for number in range(1, 29)]
FAMILY = {name: template.family for name, template in templates.TEMPLATES.items()}
SAME_FIELDS = {"T04": "T01", "T15": "T01", "T23": "T09", "T24": "T10", "T27": "T13", "T28": "T14"}

SHOWN = {  # the fields and the forms of values that each template was first described with
    "T01": {"prompt": "The area of a circle with radius 5?", "response": "πr²; for r=5 it is 3.1416*25=78.54."},
    "T02": {"task": "2x + 3 = 7", "trajectory": "Subtract 3: 2x=4. x=2.", "reward": "1 (verified via interpreter)"},
    "T03": {
        "tools": ["weather_api"],
        "user": "Weather in Tokyo?",
        "agent": "Call weather_api(location='Tokyo'). Response: Sunny, 25°C.",
    },
    "T04": {"prompt": "Explain qubits.", "response": "They can be 0 and 1 at once..."},
    "T05": {"prompt": "A trip to Mars.", "think_steps": "Step 1: Fuel needs. Step 2: Trajectory."},
    "T06": {"input": "Sort a list.", "output": "def sort_list(lst): return sorted(lst)"},
    "T07": {"prompt": "print('Hello)", "preferred_response": "Missing quote.", "dispreferred": "It works fine."},
    "T08": {"query": "Price of AAPL", "tool_call": "finance_api(symbol='AAPL')", "response": "It is $150."},
    "T09": {"prompt": "A puzzle.", "mode": "thinking", "Output": "First, the pieces... Conclusion: X."},
    "T10": {"prompt": "A puzzle.", "mode": "non-thinking", "Output": "X."},
    "T11": {"instruction": "A web scraper.", "response": "import requests; def scrape(url): ..."},
    "T12": {"sequence": "Plan: <think>Check</think> Execute query.", "reward": "High for stable gradients"},
    "T13": {"prompt": "Fix bug.", "output": "<think>Null.</think> Patch: check. <think>Test.</think> Final code: x"},
    "T14": {"tools": ["code_runner"], "prompt": "Run script.", "output": "<think>Validate</think> Output."},
    "T15": {"prompt": "Reverse a string.", "response": "def reverse_string(s): return s[::-1]  # by slicing"},
    "T16": {"task": "def add(a, b): return a - b", "trajectory": "Patch: a + b. Test: add(2,3)=5.", "reward": 1},
    "T17": {
        "tools": ["search_engine", "calculator"],
        "user_sim": "2+2 and today's date?",
        "agent_actions": "Call calculator(2+2)=4. Call search_engine('current date')=November 20, 2025.",
        "quality_check": "Success (rubric: Accurate and complete)",
    },
    "T18": {"prompt": "Summarize.", "response": "Advances in MoE...", "safety_filter": True},
    "T19": {"prompt": "Optimize algorithm.", "think": "Improve to O(n)."},
    "T20": {"input": "编写一个函数 (Write a function).", "output": "def f(): ...  # 支持中英注释."},
    "T21": {"prompt": "Password checker.", "preferred": "Length >8.", "dispreferred": "Use 'password123'."},
    "T22": {"query": "News.", "tool_call": "search_api(query='AI 2025')", "integrated_response": "A release."},
    "T23": {"mode": "thinking", "prompt": "A proof.", "Output": "Step 1: Assume... Step 2: Derive."},
    "T24": {"mode": "non-thinking", "prompt": "A proof.", "Output": "Done."},
    "T25": {"instruction": "An API.", "response": "<think>Endpoints</think> Code: from flask import Flask..."},
    "T26": {"sequence": "<think>Plan</think> Run. <think>Verify</think>.", "optimization": "High weight on coherence."},
    "T27": {"prompt": "A report.", "output": "<think>Fetch</think> Process. <think>Format</think> Final report."},
    "T28": {
        "tools": ["code_runner"],
        "prompt": "Test code.",
        "Output": "<think>Safety</think> Runner output: Success.",
    },
}


def example(name):
    return [json.loads(line) for line in (EXAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def read(value) -> Record:
    return templates.read(value).record


def again(record):
    return read(json.loads(json.dumps(record.to_dict())))


@pytest.mark.parametrize("name", NUMBERED)
def test_each_numbered_template_is_recognised_written_trained_on_and_read_again(name):
    expected = SAME_FIELDS.get(name, "T02" if name == "T16" else name)
    assert read(SHOWN[name]).template == expected
    for value in ({**SHOWN[name], "template": name}, *example(name)):
        record = read(value)
        assert record.template == name and record.family == FAMILY[name]
        chat = chat_of(record.family, record.variant)
        for answer in (record.chosen or [], record.rejected or []):
            conversation = [*record.messages, *answer]
            if any(message["role"] == "assistant" for message in conversation):
                assert chat.render(conversation, record.tools, record.thinking)
        said = record.conversation()
        tokens, trained = chat.encode(said["messages"], said.get("tools"), said.get("thinking", True))
        assert len(tokens) == len(trained) and 0 < sum(trained) < len(trained)
        assert again(record) == record


@pytest.mark.parametrize("family", ["kimi_k2", "glm_4_6", "minimax_m2"])
def test_the_example_files_are_packed_into_batches(family):
    names = [path.stem for path in sorted(EXAMPLES.glob("*.jsonl")) if (FAMILY[path.stem] or "minimax_m2") == family]
    assert all(read(value).template == name for name in names for value in example(name))
    source = sources.open([str(EXAMPLES / f"{name}.jsonl") for name in names])
    stream = pipeline.batches(source, chats.for_family(family), rows=9, length=1024, seed=1, on_too_long="error")
    batch = next(stream)
    for row in range(9):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            assert batch["mask"][row][batch["segment_ids"][row] == segment].sum() > 0
    assert batch["segment_ids"].max(axis=1).sum() > 9


def test_there_is_an_example_of_every_template_but_the_canonical_one():
    assert {path.stem for path in EXAMPLES.glob("*.jsonl")} == set(templates.TEMPLATES) - {"record"}


@pytest.mark.parametrize("family", chats.FORMATS)
def test_every_template_can_be_written_by_every_family(family):
    for name in NUMBERED:
        said = read({**SHOWN[name], "template": name}).conversation()
        assert sum(chat_of(family, None).encode(**{"thinking": True, **said})[1]) > 0
        assert family_of(read(SHOWN[name]), family) == family


def test_calls_in_a_trajectory_become_turns():
    record = read(SHOWN["T17"])
    calls = [call["function"] for message in record.messages for call in message.get("tool_calls", [])]
    assert calls == [
        {"name": "calculator", "arguments": {"input": "2+2"}},
        {"name": "search_engine", "arguments": {"input": "current date"}},
    ]
    assert [m["content"] for m in record.messages if m["role"] == "tool"] == ["4", "November 20, 2025"]
    assert record.reward == 1.0 and record.annotations["quality_check"].startswith("Success")
    text = chat_of("kimi_k2", None).render(record.messages, record.tools)
    assert "functions.calculator:0" in text and "## Return of functions.search_engine:1\nNovember 20, 2025" in text


def test_a_call_a_result_and_the_answer_that_uses_it():
    value = {**SHOWN["T08"], "tool_response": "150.0 USD"}
    _, call, result, answer = read(value).messages
    assert call["tool_calls"][0]["function"] == {"name": "finance_api", "arguments": {"symbol": "AAPL"}}
    assert (result["content"], answer["content"]) == ("150.0 USD", "It is $150.")
    record, notes = templates.read(SHOWN["T08"])
    assert record.messages[2]["content"] == "It is $150." and "no tool_response" in notes[0]
    assert record.tools[0]["function"]["parameters"]["properties"] == {"symbol": {"type": "string"}}


def test_thinking_is_kept_where_it_stands():
    record = read(SHOWN["T13"])
    answer = record.messages[-1]
    assert answer["reasoning_content"] == "Null."
    assert answer["content"] == "Patch: check. <think>Test.</think> Final code: x"
    text = chat_of("minimax_m2", None).render(record.messages)
    assert text.count("Null.") == text.count("<think>Test.</think> Final code: x") == 1
    late = read(SHOWN["T12"]).messages[0]
    assert (late["content"], late["reasoning_content"]) == (SHOWN["T12"]["sequence"], "")
    several = {"messages": [{"role": "assistant", "content": SHOWN["T13"]["output"]}]}
    assert read(several).messages[0] == answer


def test_the_mode_decides_whether_the_model_thinks():
    record = read(SHOWN["T09"])
    assert record.thinking and record.messages[-1]["reasoning_content"] == "First, the pieces..."
    assert record.messages[-1]["content"] == "Conclusion: X."
    direct = read(SHOWN["T10"])
    assert direct.conversation()["thinking"] is False
    chat = chats.for_family("glm_4_6")
    tokens, _ = chat.encode(direct.messages, thinking=False)
    batch = next(pipeline.batches(Few([direct]), chat, rows=1, length=64, seed=0, on_too_long="error"))
    assert batch["tokens"][0, : len(tokens)].tolist() == tokens


class Few:
    """A source of given records."""

    def __init__(self, given):
        self.given = given

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        return self.given[index].conversation()


def test_pairs_begin_alike_and_the_better_answer_is_imitated():
    value = {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"}
    record = read({**value, "rejected": value["chosen"][:-1] + "e"})
    assert [message["content"] for message in record.messages] == ["a", "b", "c"]
    assert [record.chosen[0]["content"], record.rejected[0]["content"]] == ["d", "e"]
    assert record.conversation()["messages"][-1]["content"] == "d"
    texts, messages = map(read, example("ultrafeedback"))
    assert texts.messages[0]["role"] == messages.messages[0]["role"] == "user"
    assert len(texts.messages) == len(texts.chosen) == len(texts.rejected) == 1
    with pytest.raises(ValueError, match="nothing to prefer"):
        read({"prompt": "a", "chosen": "b", "rejected": "b"})


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (1, 1.0),
        (True, 1.0),
        (-0.5, -0.5),
        ("1 if correct", 1.0),
        ("0 (the interpreter gets 18)", 0.0),
        ("Score: 1.", 1.0),
        ("8/10", 0.8),
        ("80 %", 0.8),
        ("High for stable gradients", 1.0),
        ("very high", 1.0),
        ("Medium", 0.5),
        ("**Low**", 0.0),
        ("unsafe answer", 0.0),
    ],
)
def test_rewards_in_words(given, value):
    assert reward(given) == value


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("purple", "neither a number nor a verdict"),
        ("hihg", "did you mean 'high'"),
        ("not correct", "neither"),
        ("5/0", "out of 0"),
        (float("nan"), "not finite"),
        (10**400, "not finite"),
        ([1], "reward is list"),
    ],
)
def test_rewards_that_say_nothing_are_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        reward(given)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("f()", {}),
        ("f(a='x, (y)', b=2)", {"a": "x, (y)", "b": 2}),
        ("f(2+2)", {"input": "2+2"}),
        ('f(\'a\', "b", c=[1, {"d": null}], d=True)', {"input": "a", "input_2": "b", "c": [1, {"d": None}], "d": True}),
        (r"f(a='it\'s\n\d')", {"a": "it's\n\\d"}),
        ("f(a=1, a=2)", {"input": "a=1, a=2"}),
        ("f(not python at all)", {"input": "not python at all"}),
        ("f(**x)", {"input": "**x"}),
        ("f(a=b'x', c=1e999, d=NaN)", {"a": "b'x'", "c": "1e999", "d": "NaN"}),
        ('{"name": "f", "arguments": {"a": 1}}', {"a": 1}),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', {"a": 1}),
        ("<tool_call>f(a=1)</tool_call>", {"a": 1}),
        ("Call f(a=1).", {"a": 1}),
    ],
)
def test_calls_as_text(text, arguments):
    assert pseudo_calls.read_call(text)["function"] == {"name": "f", "arguments": arguments}


@pytest.mark.parametrize(
    "text", ["", "f", "f(a=1", "f(a) and more", '{"arguments": {}}', '{"name": "f", "arguments": 3}']
)
def test_what_is_no_call_is_refused(text):
    with pytest.raises(ValueError):
        pseudo_calls.read_call(text)


def test_a_call_that_cannot_be_read_stays_text_and_is_noted():
    notes = []
    said = "Call f(a=1)=2. Then <tool_call>{broken</tool_call> and Call g(b='x."
    messages = pseudo_calls.turns(said, notes)
    assert len(notes) == 2 and "left as text" in notes[0]
    assert len([message for message in messages if message.get("tool_calls")]) == 1
    assert "<tool_call>{broken</tool_call> and Call g(b='x." in "".join(message["content"] for message in messages)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"promt": "a", "response": "b"}, "'promt': did you mean 'prompt'"),
        ({"task": "a", "trajectory": "b", "rewrad": 1}, None),
        ({"tools": ["f"], "user": "a"}, None),
        ({"prompt": "a", "mode": "thinkng"}, "did you mean 'thinking'"),
        ({"prompt": "a", "response": "b", "template": "T99"}, "template 'T99' is unknown; did you mean 'T"),
        ({"prompt": "a", "response": "b", "template": "T07"}, "T07 also needs preferred_response, dispreferred"),
        ({"preferred": "a", "dispreferred": "b"}, "T21 also needs prompt"),
        ({"query": "a", "tool_call": "nothing"}, "field 'tool_call' is no tool call"),
        ({"tools": [5], "prompt": "a", "output": "b"}, "field 'tools' is .*expected a list of names or functions"),
        ({"Prompt": "a", "prompt": "b"}, "field 'prompt' is given twice"),
        ({"query": "a", "question": "b", "solution": "c"}, "'query' and 'question' both give the prompt"),
        ({"conversations": [{"from": "humn", "value": "a"}]}, "turn 0 is from 'humn'.*did you mean 'human'"),
        ({"chosen": "a", "rejected": "b"}, "does not begin with 'Human:'"),
        ({"messages": [{"role": "asistant", "content": "a"}]}, "role 'asistant'"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "tool_calls of type int"),
        ({"record": 2, "messages": []}, "reads version 1"),
        ({"record": 1, "mesages": []}, "no field 'mesages'; did you mean 'messages'"),
        ({"record": 1, "messages": [], "stage": "sft"}, "field 'messages' is empty"),
        ({"record": 1, "messages": [{"role": "user", "content": "a"}], "stage": "perf"}, "did you mean 'pref'"),
        ({"record": 1, "messages": [{"role": "user", "content": "a"}], "chosen": []}, "needs both"),
    ],
)
def test_what_is_wrong_is_refused_with_the_nearest_name_or_mended_with_a_note(value, reason):
    if reason is None:
        assert templates.read(value).notes
        return
    with pytest.raises(ValueError, match=reason) as refused:
        templates.read(value)
    assert "\n" not in str(refused.value)


def test_fields_without_a_part_are_kept():
    record, notes = templates.read({"prompt": "a", "response": "b", "id": 7, "colour": "red"})
    assert record.annotations == {"id": 7, "colour": "red"}
    assert len(notes) == 1 and "'colour'" in notes[0]


def test_a_canonical_record_keeps_every_field():
    pair = [{"role": "assistant", "content": "b"}], [{"role": "assistant", "content": "c"}]
    asked = [{"role": "user", "content": "a"}]
    full = Record(asked, [{"name": "f"}], False, "pref", "glm_4_6", "thinking", *pair, 0.5, {"x": [1]}, "T07")
    assert again(full) == full == records.from_dict(full.to_dict())
    assert set(full.to_dict()) == {records.MARK, *records.FIELDS}
