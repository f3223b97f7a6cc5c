"""Each benchmark's file: what is asked, and which answers are right."""

import ast
import gzip
import json
import os
from pathlib import Path

import pytest

from posttrain_jax.errors import UserError
from posttrain_jax.rewards.sandbox.sandbox import Sandbox, SandboxUnavailable
from posttrain_jax.stages.benchmarks import readers

REAL = pytest.mark.skipif("POSTTRAIN_DATA" not in os.environ, reason="POSTTRAIN_DATA names no folder of real files")


def said(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def confined():
    try:
        Sandbox.open(workers=1).close()
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))


def test_gsm8k_wants_the_number_behind_the_hashes(question):
    asked = question("gsm8k")
    assert "Ten and two less?" in asked.messages[0]["content"] and "1,008" not in asked.messages[0]["content"]
    assert asked.grade(said("So \\boxed{1008}")).correct and asked.grade(said("1008")).correct
    assert not asked.grade(said("\\boxed{8}")).correct


def test_math_wants_the_box_of_the_solution_in_any_form(question):
    asked = question("math")
    assert asked.subset == "Algebra" and asked.expected == "\\frac{x}{2}"
    assert asked.grade(said("\\boxed{x/2}")).correct and not asked.grade(said("\\boxed{2x}")).correct


def test_math_leaves_out_rows_without_an_answer(written, graders):
    rows = [{"problem": "One?", "answer": None}, {"problem": "Two?", "answer": "2"}]
    written["math"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [q.expected for q in readers.read(f"math:{written['math']}", graders)] == ["2"]


def test_mbpp_runs_the_last_program(question, confined):
    asked = question("mbpp")
    assert "assert add(1, 2) == 3" in asked.messages[0]["content"] and asked.name == "7"
    assert asked.grade(said("Here:\n```python\ndef add(a, b):\n    return a + b\n```")).correct
    assert not asked.grade(said("```python\ndef add(a, b):\n    return 3\n```")).correct


def test_humaneval_takes_a_whole_program_or_what_goes_on(question, confined):
    asked = question("humaneval")
    assert asked.grade(said("```python\ndef total(xs):\n    return sum(xs)\n```")).correct
    assert asked.grade(said("    return sum(xs)\n")).correct
    assert not asked.grade(said("    return 4\n")).correct
    assert not asked.grade(said("```text\nnothing\n```")).well_formed


def test_ifeval_is_right_when_all_instructions_are_followed_and_pays_for_some(question):
    asked = question("ifeval")
    assert asked.grade(said("rain falls from clouds and wets the ground.")).correct
    some = asked.grade(said("rain falls, and wets the ground."))
    assert not some.correct and some.reward == 0.5


def test_bfcl_offers_json_schemas_and_compares_calls(question):
    asked = question("bfcl")
    parameters = asked.tools[0]["function"]["parameters"]
    assert parameters["type"] == "object" and parameters["properties"]["side"] == {"type": "number"}
    assert parameters["properties"]["names"] == {"type": "array", "items": {"type": "string"}}
    call = lambda side: {"tool_calls": [{"function": {"name": "area.square", "arguments": {"side": side}}}]}  # noqa: E731
    assert asked.subset == "simple_python"
    assert asked.grade(call(5)).correct and not asked.grade(call(6)).correct and not asked.grade(said("25")).correct


def test_bfcl_of_irrelevant_tools_wants_no_call(written, graders):
    row = json.loads(written["bfcl"].read_text())
    path = written["bfcl"].with_name("irrelevance.jsonl")
    path.write_text(json.dumps(row))
    [asked] = readers.read(f"bfcl:{path}", graders)
    call = {"tool_calls": [{"function": {"name": "area.square", "arguments": {"side": 5}}}]}
    assert asked.grade(said("I cannot")).correct and not asked.grade(call).correct


def test_a_limit_is_spread_over_the_file(written, graders):
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(10)]
    written["gsm8k"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = readers.read(f"gsm8k:{written['gsm8k']}", graders, 4)
    assert [q.expected for q in found] == ["0", "2", "5", "7"]


def test_without_a_sandbox_no_question_with_a_program_is_read(written, graders, monkeypatch):
    def unavailable():
        raise SandboxUnavailable("this machine cannot")

    monkeypatch.setattr(Sandbox, "open", unavailable)
    for name in ("mbpp", "humaneval"):
        with pytest.raises(SandboxUnavailable):
            readers.read(f"{name}:{written[name]}", graders)


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("gsm8k", {"answer": "#### many"}, "line 1: not a number"),
        ("gsm8k", {"answer": "8"}, "line 1: not a row"),
        (
            "ifeval",
            {"instruction_id_list": ["punctuation:no_coma", "x:y"]},
            "there is punctuation:no_comma",
        ),
        ("ifeval", {"kwargs": [{}]}, "2 instructions with arguments for 1"),
        ("bfcl", {"id": "simple_python_9"}, "without an answer"),
        ("bfcl", {"question": [[], []]}, "2 turns"),
    ],
)
def test_rows_of_another_shape_are_refused_in_one_line(written, graders, name, change, words):
    written[name].write_text(json.dumps(json.loads(written[name].read_text()) | change))
    with pytest.raises(UserError, match=words) as raised:
        readers.read(f"{name}:{written[name]}", graders)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spec", ["gsm9k:x.jsonl", "gsm8k", "gsm8k:"])
def test_an_unknown_benchmark_is_told_the_nearest(graders, spec):
    with pytest.raises(UserError, match="the nearest there is gsm8k"):
        readers.read(spec, graders)


def test_bfcl_of_several_turns_is_refused(written, graders):
    path = written["bfcl"].with_name("BFCL_v4_multi_turn_base.json")
    path.write_text("{}")
    with pytest.raises(UserError, match="BFCL_v4_simple_python.json"):
        readers.read(f"bfcl:{path}", graders)


@REAL
def test_gsm8k_solutions_are_right_and_their_neighbours_wrong(graders):
    path = Path(os.environ["POSTTRAIN_DATA"]) / "gsm8k" / "train.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    questions = readers.read(f"gsm8k:{path}", graders)
    assert all(q.grade(said(a)).correct for q, a in zip(questions[::50], answers[::50], strict=True))
    others = [(q, a) for q, a in zip(questions, answers[1:], strict=False) if q.expected not in a][::50]
    assert others and not any(q.grade(said(a)).correct for q, a in others)


@REAL
@pytest.mark.parametrize("name", ["math/train_answers", "mbpp/train_val_prompt", "ifeval/half_a"])
def test_every_row_of_a_real_file_becomes_a_question(graders, confined, name):
    path = Path(os.environ["POSTTRAIN_DATA"]) / f"{name}.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        rows = sum(json.loads(line).get("answer", "none") is not None for line in lines)
    assert len(readers.read(f"{name.partition('/')[0]}:{path}", graders)) >= rows - 5 > 200


@REAL
def test_the_wanted_calls_of_every_bfcl_question_are_right_and_another_questions_are_not(graders):
    """The gold calls, each argument at its first accepted value."""
    questions = readers.read(f"bfcl:{Path(os.environ['POSTTRAIN_DATA']) / 'bfcl' / 'questions'}", graders)
    asked = [(q, gold(q)) for q in questions if "relevance" not in q.subset]
    right = [q.grade(message).correct for q, message in asked]
    assert len(right) > 1000 and sum(right) >= 0.99 * len(right)
    swapped = [q.grade(other).correct for (q, _), (_, other) in zip(asked, asked[1:], strict=False)]
    assert sum(swapped) < 0.02 * len(swapped)


def gold(question):
    """The wanted calls as a message."""
    calls = [
        {"function": {"name": name, "arguments": chosen(arguments)}}
        for call in ast.literal_eval(question.expected)
        for name, arguments in call.items()
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def chosen(fields):
    """The first accepted value of each field that has to be given."""
    real = {key: [option for option in options if option != ""] for key, options in fields.items()}
    return {key: plain(options[0]) for key, options in real.items() if options}


def plain(value):
    if isinstance(value, list):
        return [plain(each) for each in value]
    lists = isinstance(value, dict) and all(isinstance(inner, list) for inner in value.values())
    return chosen(value) if lists else value
