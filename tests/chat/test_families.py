"""What holds for the chat format of every family: the makers' renderings, masks, injection, reading back, fuzz.

``goldens/`` holds random conversations and what the makers' own templates make of them (with Jinja's settings as
transformers has them); the templates themselves belong to their authors.
"""

from __future__ import annotations

import collections
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain_jax import chat
from posttrain_jax.errors import UserError

CHATS = {
    "kimi_k2": chat.for_family("kimi_k2"),
    "kimi_k2 instruct": chat.for_family("kimi_k2", "instruct"),
    "glm_4_6": chat.for_family("glm_4_6"),
    "minimax_m2": chat.for_family("minimax_m2"),
    "minimax_m1": chat.for_family("minimax_m1"),
}
each_chat = pytest.mark.parametrize("family", CHATS)
GOLDENS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "goldens").glob("*.json")}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "share": {"type": "number"},
                "metric": {"type": "boolean"},
                "where": {"type": "object"},
                "tags": {"type": "array"},
            },
        },
    },
}


def call(name, arguments, id=None):
    written = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return written if id is None else {"id": id, **written}


def masked(family, messages, **options):
    """The text that is trained, in one string a stretch, and the whole text."""
    encoded = CHATS[family] if isinstance(family, str) else family
    tokens, mask = encoded.encode(messages, **options)
    stretches, current = [], []
    for token, trained in [*zip(tokens, mask, strict=True), (0, 0)]:
        if trained:
            current.append(token)
        elif current:
            stretches.append(encoded.tokenizer.decode(current))
            current = []
    return stretches, encoded.tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("family", "number"), [(name, i) for name in GOLDENS for i in range(len(GOLDENS[name]["cases"]))]
)
def test_rendered_as_the_makers_do(family, number):
    case = GOLDENS[family]["cases"][number]
    tools = GOLDENS[family]["tools"] if case["tools"] else None
    got = CHATS[family].render(case["messages"], tools, case["thinking"], case["add_generation_prompt"])
    assert got == case["rendered"]


LOOP = [
    {"role": "system", "content": "SYS"},
    {"role": "user", "content": "Q1"},
    {"role": "assistant", "content": "A1", "reasoning_content": "R1"},
    {"role": "user", "content": "Q2"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "R2",
        "tool_calls": [call("get_weather", {"city": "Tokyo", "days": 2}), call("get_weather", {"city": "Osaka"})],
    },
    {"role": "tool", "content": "Sunny"},
    {"role": "tool", "content": "Rain"},
    {"role": "assistant", "content": "A2", "reasoning_content": "R3"},
]
K2_CALLS = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"city": "Tokyo", "days": 2}<|tool_call_end|><|tool_call_begin|>functions.get_weather:1'
    '<|tool_call_argument_begin|>{"city": "Osaka"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
)
GLM_CALLS = (
    "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Tokyo</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>2</arg_value>\n</tool_call>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
    "<arg_value>Osaka</arg_value>\n</tool_call>"
)
M1_CALLS = (
    '<tool_calls>\n{"name": "get_weather", "arguments": {"city": "Tokyo", "days": 2}}\n'
    '{"name": "get_weather", "arguments": {"city": "Osaka"}}\n</tool_calls><end_of_sentence>'
)


def test_kimi_numbers_calls_and_keeps_reasoning_while_the_loop_runs():
    head = "<|im_system|>system<|im_middle|>SYS<|im_end|><|im_user|>user<|im_middle|>Q1<|im_end|>"
    answer = "<|im_assistant|>assistant<|im_middle|>"
    results = "".join(
        f"<|im_system|>tool<|im_middle|>## Return of functions.get_weather:{i}\n{text}<|im_end|>"
        for i, text in enumerate(("Sunny", "Rain"))
    )
    running = (
        f"{head}{answer}<think></think>A1<|im_end|><|im_user|>user<|im_middle|>Q2<|im_end|>"
        f"{answer}<think>R2</think>{K2_CALLS}{results}{answer}"
    )
    assert CHATS["kimi_k2"].render(LOOP[:-1], add_generation_prompt=True) == running
    finished = running.replace("<think>R2</think>", "<think></think>") + "<think></think>A2<|im_end|>"
    assert CHATS["kimi_k2"].render(LOOP) == finished
    stretches, whole = masked("kimi_k2", LOOP)
    assert whole == running + "<think>R3</think>A2<|im_end|>"
    assert stretches == [f"<think>R2</think>{K2_CALLS}", "<think>R3</think>A2<|im_end|>"]
    assert masked("kimi_k2", LOOP[:3])[0] == ["<think>R1</think>A1<|im_end|>"]
    instruct = CHATS["kimi_k2 instruct"].render(LOOP)
    assert instruct == finished.replace("<think></think>", "")
    assert masked("kimi_k2 instruct", LOOP) == (["A1<|im_end|>", K2_CALLS, "A2<|im_end|>"], instruct)


def test_glm_learns_to_stop():
    stretches, whole = masked("glm_4_6", LOOP)
    assert whole == CHATS["glm_4_6"].render(LOOP) + "<|user|>"
    assert stretches == [
        f"\n<think>R2</think>{GLM_CALLS}<|observation|>",
        "\n<think>R3</think>\nA2<|user|>",
    ]
    assert masked("glm_4_6", LOOP[:3])[0] == ["\n<think>R1</think>\nA1<|user|>"]
    assert masked("glm_4_6", LOOP[:5])[1].endswith("</tool_call><|observation|>")


def test_glm_without_thinking():
    stretches, whole = masked("glm_4_6", LOOP, thinking=False)
    assert "Q1/nothink<|assistant|>" in whole and whole.endswith("<|assistant|>\n<think></think>\nA2<|user|>")
    assert stretches[-1] == "\nA2<|user|>"
    prompt = CHATS["glm_4_6"].render(LOOP[:2], thinking=False, add_generation_prompt=True)
    assert prompt.endswith("<|user|>\nQ1/nothink<|assistant|>\n<think></think>")
    asked = [{"role": "user", "content": "Hi/nothink"}]
    assert CHATS["glm_4_6"].render(asked, thinking=False) == "[gMASK]<sop><|user|>\nHi/nothink"


def test_m1_learns_reasoning_that_its_template_leaves_out():
    stretches, whole = masked("minimax_m1", LOOP)
    assert stretches == ["<think>\nR3\n</think>\n\nA2<end_of_sentence>"]
    assert masked("minimax_m1", LOOP[:5])[0] == [f"<think>\nR2\n</think>\n\n{M1_CALLS}"]
    assert "tool name: get_weather\ntool result: Sunny\n\n" in whole and "R1" not in whole
    assert CHATS["minimax_m1"].render(LOOP) == whole.replace("<think>\nR3\n</think>\n\n", "")


@each_chat
def test_keep_all_thinking(family):
    name, *variant = family.split()
    text = chat.for_family(name, *variant, keep_all_thinking=True).render(LOOP)
    assert all((reasoning in text) == (family != "kimi_k2 instruct") for reasoning in ("R1", "R2", "R3"))


@each_chat
def test_only_answers_are_trained(family):
    ends = CHATS[family].beginnings(LOOP)
    text = "".join(stretch for end in ends for stretch in masked(family, LOOP[:end], tools=[TOOL])[0])
    assert "A1" in text and "A2" in text and "Osaka" in text
    assert not any(word in text for word in ("SYS", "Q1", "Q2", "Sunny", "Rain", "properties"))
    prompt, mask = CHATS[family].encode(LOOP[:-1], tools=[TOOL], add_generation_prompt=True)
    assert not any(mask[-3:])


@each_chat
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("length", [3, 5, 8])
def test_a_prompt_begins_its_continuation(family, thinking, length):
    prompt, _ = CHATS[family].encode(LOOP[: length - 1], thinking=thinking, add_generation_prompt=True)
    tokens, mask = CHATS[family].encode(LOOP[:length], thinking=thinking)
    assert tokens[: len(prompt)] == prompt
    end = CHATS[family].tokenizer.encode("\n") if family.startswith("minimax") else []  # belongs to nobody's answer
    assert mask[len(prompt) :] == [1] * (len(tokens) - len(prompt) - len(end)) + [0] * len(end)
    stop = [token for token, trained in zip(tokens, mask, strict=True) if trained][-1]
    assert stop in CHATS[family].stop_tokens


@each_chat
def test_no_text_can_spell_a_special_token(family):
    encoded = CHATS[family]
    hostile = "".join(encoded.format.special_tokens)

    def specials(text):
        messages = [
            {"role": "system", "content": text},
            {"role": "user", "content": text, "name": text},
            {
                "role": "assistant",
                "content": text,
                "reasoning_content": text,
                "tool_calls": [call("f", {"city": text, text: 1}, id=text)],
            },
            {"role": "tool", "content": text, "tool_call_id": text},
            {"role": "assistant", "content": text, "reasoning_content": text},
        ]
        tokens, _ = encoded.encode(messages, tools=[TOOL, {"name": "g", "description": text}])
        return [token for token in tokens if token in encoded.tokenizer.specials.values()]

    assert specials(hostile) == specials("plain")
    assert len(set(specials("plain"))) > 2


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SANE = TEXT.map(str.strip).filter(lambda text: not re.search(r"[<>\[\]|]", text))
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "city": SANE,
        "days": st.integers(),
        "share": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "metric": st.booleans(),
        "where": st.dictionaries(st.sampled_from(["a", "é"]), st.none() | st.integers() | SANE, max_size=3),
        "tags": st.lists(SANE, max_size=3),
    },
)


@each_chat
@settings(max_examples=60, deadline=None)
@given(reasoning=SANE, content=SANE, arguments=st.lists(ARGUMENTS, max_size=3), ended=st.booleans())
def test_parse_reads_what_was_written(family, reasoning, content, arguments, ended):
    encoded = CHATS[family]
    reasoning = "" if family == "kimi_k2 instruct" else reasoning or "R"
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning}
    if arguments:
        ids = [f"functions.f:{i}" if family.startswith("kimi") else None for i in range(len(arguments))]
        message["tool_calls"] = [call("f", a, id) for a, id in zip(arguments, ids, strict=True)]
    prompt = encoded.render(LOOP[:2], add_generation_prompt=True)
    text = encoded.tokenizer.decode(encoded.encode([*LOOP[:2], message])[0]).removeprefix(prompt)
    if not ended:
        stop = next((s for s in encoded.format.stop_tokens if text.rstrip("\n").endswith(s)), "")
        text = text.removesuffix("\n").removesuffix(stop)
    assert encoded.parse(text, [TOOL]) == message


MARKUP = {
    "kimi_k2": ["<think>", "</think>", *re.findall(r"<[^>]*>", K2_CALLS)],
    "glm_4_6": ["<think>", "</think>", *re.findall(r"<[^>]*>", GLM_CALLS), "<|user|>", "<|observation|>"],
    "minimax_m2": [
        *("</think>", "<minimax:tool_call>", "</minimax:tool_call>", "</invoke>", "</parameter>", "[e~["),
        *('<invoke name="', '<parameter name="', '">', '<invoke name="f">', '<parameter name="city">'),
    ],
    "minimax_m1": ["<think>", "</think>", "<tool_calls>", "</tool_calls>", "<end_of_sentence>"],
}
PIECES = [
    *("\n", " ", "\n\n", "x", "word", "42", "é", "functions.f:3", "f", "f\n", "0", "days", "city", "3", "<", ">", "|"),
    *('{"city": "Rome"}', '{"days": "x"}', '{"name": "f", "arguments": {"days": 2}}\n', "{", "}", '{"a": 1, "a": 2}'),
    *("1e999", "NaN", "9" * 5000, "[" * 3000, '"\\ud800"', "null", '{"name": 3}', "true"),
]


def random_output(dice, family, good):
    """A malformed answer: markup and words in any order, or a well-formed answer with pieces cut out or put in."""
    pieces = [*MARKUP[family.split()[0]], *PIECES]
    if dice.random() < 0.4:
        return "".join(dice.choice(pieces) for _ in range(dice.randrange(12)))
    text = dice.choice(good)
    for _ in range(dice.randrange(1, 4)):
        start, end = sorted(dice.randrange(len(text) + 1) for _ in range(2))
        end = min(end, start + dice.randrange(8))
        text = text[:start] + (dice.choice(pieces) if dice.random() < 0.5 else "") + text[end:]
    return text


def letters(family, text):
    """How often each letter or digit stands in a text, outside the words of the markup."""
    for name in sorted(MARKUP[family.split()[0]], key=len, reverse=True):
        text = text.replace(name, " ")
    words = re.sub(r'"(name|arguments)"\s*:', " ", text) if family == "minimax_m1" else text
    return collections.Counter(character for character in words if character.isalnum())


@each_chat
def test_ten_thousand_malformed_outputs(family):
    """Nothing raises, and no letter or digit is lost."""
    encoded, dice = CHATS[family], random.Random(0)
    prompt = encoded.render(LOOP[:2], add_generation_prompt=True)
    arguments = [{"city": "Rome", "days": 7}, {"city": "a b\nc"}]
    good = []
    for count in range(3):
        message = {"role": "assistant", "content": "Well then", "reasoning_content": "Let me see"}
        message["tool_calls"] = [call("f", a) for a in arguments[:count]]
        good.append(encoded.tokenizer.decode(encoded.encode([*LOOP[:2], message])[0]).removeprefix(prompt))
    malformed = 0
    for _ in range(10_000):
        text, thinking = random_output(dice, family, good), dice.random() < 0.8
        message = encoded.parse(text, [TOOL], thinking)
        assert message["role"] == "assistant" and isinstance(message["content"], str)
        json.dumps(message, ensure_ascii=False).encode()
        malformed += bool(message.get("errors"))
        kept = [message["content"], message["reasoning_content"]]
        for each in message.get("tool_calls", ()):
            function = each["function"]
            kept += [each.get("id", function["name"])]
            kept += [json.dumps(value, ensure_ascii=False) for value in function["arguments"].values()]
            kept += list(function["arguments"])
        missing = letters(family, text) - letters(family, "\n".join(kept))
        assert not missing, (text, message)
    assert malformed > 1000


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="'glm_46'; the nearest is 'glm_4_6'"):
        chat.for_family("glm_46")
    with pytest.raises(UserError, match="variant of kimi_k2 'instuct'; the nearest is 'instruct'"):
        chat.for_family("kimi_k2", "instuct")
    with pytest.raises(UserError, match="'keep_thinking'; the nearest is 'keep_all_thinking'"):
        chat.for_family("glm_4_6", keep_thinking=True)


def test_kimi_results_without_ids_answer_in_order_and_bare_counters_name_the_only_tool():
    messages = [*LOOP[:4], {**LOOP[4], "tool_calls": [call("f", {}, "call_7"), call("g", "{}")]}, *LOOP[5:7]]
    text = CHATS["kimi_k2"].render(messages)
    assert "## Return of call_7\nSunny" in text and "## Return of functions.g:1\nRain" in text
    text = (
        "<|tool_calls_section_begin|><|tool_call_begin|>0<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>"
    )
    assert CHATS["kimi_k2"].parse(text, [TOOL])["tool_calls"] == [call("f", {}, "0")]
    assert "id '0'" in CHATS["kimi_k2"].parse(text, [TOOL, TOOL])["errors"][0]


def test_kimi_may_declare_tools_without_spaces():
    spaced = CHATS["kimi_k2"].render(LOOP, [TOOL])
    compact = chat.for_family("kimi_k2", compact_tools=True).render(LOOP, [TOOL])
    assert compact == spaced.replace(json.dumps([TOOL]), json.dumps([TOOL], separators=(",", ":")))
    assert compact != spaced
