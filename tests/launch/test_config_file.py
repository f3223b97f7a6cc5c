"""launch/config_file.py: names of data, in a configuration file and on the command line."""

import config_file
import pytest

from posttrain_jax.run import validate

RECIPE = """
from posttrain_jax.run.recipe import Recipe, to_config

def get_config(scale="tiny"):
    c = to_config(Recipe())
    {line}
    return c
"""


def data(path, *given, line="pass", key="sft.data"):
    """What a recipe reads, the mistakes of its command line, and those of its values."""
    path.write_text(RECIPE.format(line=line))
    config, wrong = config_file.override(path, None, [(f"config.{key}", value) for value in given])
    recipe, _ = validate.structure(config)
    if key.startswith("phases"):
        return recipe.phases["long"]["sft"]["data"], wrong
    return recipe.sft.data, wrong


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("pass", ("tasks",)),
        ("c.sft.data = 'a.jsonl,b.jsonl'", ("a.jsonl,b.jsonl",)),
        ("c.sft.data = ['a.jsonl', 'b.jsonl']", ("a.jsonl", "b.jsonl")),
        ("c.sft.data = ('a.jsonl', 'data/*.jsonl')", ("a.jsonl", "data/*.jsonl")),
    ],
)
def test_a_configuration_file_names_data_as_text_or_in_a_list(tmp_path, line, read):
    assert data(tmp_path / "c.py", line=line) == (read, [])
    assert data(tmp_path / "c.py", "/d/x y.jsonl,/e", line=line) == (("/d/x y.jsonl,/e",), [])


@pytest.mark.parametrize("key", ["sft.data", "phases.long.sft.data"])
@pytest.mark.parametrize("before", ["'tasks'", "('a', 'b')", "['a']"])
@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["a.jsonl,b.jsonl"], ("a.jsonl,b.jsonl",)),
        (["/a.jsonl", "data/**/*.jsonl"], ("/a.jsonl", "data/**/*.jsonl")),
        (["('a.jsonl', 'b.jsonl')"], ("a.jsonl", "b.jsonl")),
        (['["a.jsonl"]', "b.jsonl"], ("a.jsonl", "b.jsonl")),
        (["7"], ("7",)),
    ],
)
def test_a_command_line_names_data_one_by_one_or_in_a_list(tmp_path, given, read, key, before):
    line = f"c.sft.data = {before}; c.phases.long = {{'kind': 'sft', 'sft': {{'data': {before}}}}}"
    assert data(tmp_path / "c.py", *given, line=line, key=key) == (read, [])


def test_a_broken_list_is_told(tmp_path):
    read, (wrong,) = data(tmp_path / "c.py", "('a.jsonl', ")
    assert read == ("tasks",) and wrong.startswith("config.sft.data=('a.jsonl', : expected names, such as ('tasks',)")
