"""Rows of each benchmark in the shape in which it is published."""

import contextlib
import json

import pytest

from posttrain_jax.stages.benchmarks import readers

TOOL = {
    "name": "area.square",
    "description": "Of a square.",
    "parameters": {
        "type": "dict",
        "properties": {"side": {"type": "float"}, "names": {"type": "tuple", "items": {"type": "String"}}},
        "required": ["side"],
    },
}
ROWS = {
    "gsm8k": {"question": "Ten and two less?", "answer": "It is 10-2=<<10-2=8>>8.\n#### 1,008"},
    "math": {"problem": "Half of $x$?", "level": "Level 1", "type": "Algebra", "solution": "So \\boxed{\\frac{x}{2}}."},
    "mbpp": {
        "text": "Write a function to add two numbers.",
        "code": "def add(a, b):\r\n  return a + b",
        "task_id": 7,
        "test_setup_code": "",
        "test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"],
        "challenge_test_list": [],
    },
    "humaneval": {
        "task_id": "HumanEval/900",
        "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """The sum."""\n',
        "canonical_solution": "    return sum(xs)\n",
        "entry_point": "total",
        "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n",
    },
    "ifeval": {
        "key": 11,
        "prompt": "Describe rain without commas in lower case.",
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
        "kwargs": [{}, {"relation": None}],
    },
    "bfcl": {
        "id": "simple_python_0",
        "question": [[{"role": "user", "content": "Area of a square of side 5?"}]],
        "function": [TOOL],
    },
}
ANSWER = {"id": "simple_python_0", "ground_truth": [{"area.square": {"side": [5.0], "names": ["", ["s"]]}}]}


@pytest.fixture
def written(tmp_path):
    """The files, by benchmark."""
    paths = {name: tmp_path / f"{name}.jsonl" for name in ROWS}
    paths["bfcl"] = tmp_path / "BFCL_v4_simple_python.json"
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / "possible_answer" / "BFCL_v4_simple_python.json").write_text(json.dumps(ANSWER) + "\n")
    for name, path in paths.items():
        path.write_text(json.dumps(ROWS[name]) + "\n")
    return paths


@pytest.fixture
def graders():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def question(written, graders):
    """The one question of a benchmark's file."""
    return lambda name: readers.read(f"{name}:{written[name]}", graders)[0]
