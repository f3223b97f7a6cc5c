"""Sources: what a record becomes, and what a broken, missing or empty data set says."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain_jax.data import sources, tasks
from posttrain_jax.errors import UserError

SYSTEM = {"role": "system", "content": "Think."}
QUESTION = {"role": "user", "content": "How many?"}
GSM8K = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n24+48 = 72\n#### 72"}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"jsonl:{path}"


def messages(record, system="Think."):
    return sources.conversation(record, system)["messages"]


def test_prompt_and_response():
    answer = {"role": "assistant", "content": "5"}
    assert messages({"prompt": "How many?", "response": "5"}) == [SYSTEM, QUESTION, answer]
    assert messages({"prompt": "How many?", "response": "5"}, system="") == [QUESTION, answer]


def test_question_and_answer_split_reasoning_from_the_number():
    reasoning = "48/2 = <<48/2=24>>24\n24+48 = 72"
    answer = {"role": "assistant", "reasoning_content": reasoning, "content": "72"}
    assert messages(GSM8K) == [SYSTEM, QUESTION, answer]
    assert messages({"question": "How many?", "answer": "72"})[-1] == {**answer, "reasoning_content": ""}


def test_messages_stay_as_they_are_and_keep_their_own_system_message():
    own = [{"role": "system", "content": "Own."}, QUESTION, {"role": "assistant", "content": "5"}]
    assert messages({"messages": own}) == own
    assert messages({"messages": own[1:]}) == [SYSTEM, *own[1:]]
    tools = [{"name": "f", "parameters": {}}]
    assert sources.conversation({"messages": own, "tools": tools}, "") == {"messages": own, "tools": tools}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([1], "expected an object, found list"),
        ({"text": "a"}, "no template has these fields; found fields: text"),
        ({"promt": "a", "response": "b"}, "'promt': did you mean 'prompt'"),
        ({"prompt": "a", "mode": "thinking"}, "only RL can use it"),
        ({}, "found fields: none"),
        ({"prompt": "a", "response": 5}, "field 'response' is int; expected text"),
        ({"messages": "a"}, "not a list of objects"),
        ({"messages": [QUESTION]}, "no assistant message"),
    ],
)
def test_a_record_that_is_no_conversation_says_why(record, reason, tmp_path):
    spec = write(tmp_path / "a.jsonl", [GSM8K, record])
    with pytest.raises(UserError, match=rf"a\.jsonl line 2: .*{reason}"):
        sources.open(spec)


@given(st.lists(st.one_of(st.text(), st.none()), min_size=1).filter(any), st.booleans())
def test_any_line_can_be_read_in_any_order(tmp_path_factory, prompts, compressed):
    """None is an empty line; text is kept to the last character, whatever its encoding's length."""
    lines = [json.dumps({"prompt": p, "response": "r"}, ensure_ascii=False) if p is not None else " " for p in prompts]
    content = "\n".join(lines).encode(errors="surrogatepass")
    path = tmp_path_factory.mktemp("lines") / ("a.jsonl.gz" if compressed else "a.jsonl")
    path.write_bytes(gzip.compress(content) if compressed else content)
    source = sources.open(f"jsonl:{path}")
    kept = [(number, prompt) for number, prompt in enumerate(prompts, 1) if prompt is not None]
    assert len(source) == len(kept)
    for index, (number, prompt) in reversed(list(enumerate(kept))):
        assert source[index]["messages"][0] == {"role": "user", "content": prompt}
        assert source.where(index) == f"{path} line {number}"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a"', "not JSON: Expecting ',' delimiter at character 16"),
        (b'{"prompt": "\xff", "response": "b"}', "'utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_a_broken_line_is_named_by_its_number(line, reason, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([json.dumps(GSM8K).encode(), b"", line, b""]))
    with pytest.raises(UserError, match=rf"a\.jsonl line 3: .*{reason}"):
        sources.open(f"jsonl:{path}")


def test_missing_files_name_the_nearest_there_is(tmp_path):
    write(tmp_path / "train.jsonl", [GSM8K])
    write(tmp_path / "other.txt", [GSM8K])
    with pytest.raises(UserError, match=r"trian\.jsonl is missing; the nearest there is train\.jsonl$"):
        sources.open(f"jsonl:{tmp_path / 'trian.jsonl'}")
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"dota/train\.jsonl is missing; the nearest there is data$"):
        sources.open(f"jsonl:{tmp_path / 'dota' / 'train.jsonl'}")
    with pytest.raises(UserError, match=r"data is a folder without \.jsonl or \.json files$"):
        sources.open(str(tmp_path / "data"))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_files_are_refused(content, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl has no records"):
        sources.open(f"jsonl:{tmp_path / 'a.jsonl'}")


def test_a_cut_off_gzip_file_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GSM8K).encode() * 100)[:-20])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is not a whole gzip file"):
        sources.open(f"jsonl:{path}")


def test_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(UserError, match="'csv:a' is unknown: expected 'tasks', .jsonl or .json files, .*'tfds:NAME"):
        sources.open("csv:a")


def test_folders_and_patterns_are_their_files_in_order(tmp_path):
    inner = tmp_path / "data" / "more"
    inner.mkdir(parents=True)
    for place in (tmp_path / "data" / "b.jsonl", tmp_path / "data" / "a.jsonl", inner / "c.jsonl"):
        write(place, [{"prompt": place.stem, "response": "r"}])
    with gzip.open(tmp_path / "data" / "d.json.gz", "wt") as file:
        json.dump([{"prompt": "d", "response": "r"}], file)
    (tmp_path / "data" / "notes.txt").write_text("nothing to learn")

    def prompts(spec):
        source = sources.open(spec)
        return [source[index]["messages"][0]["content"] for index in range(len(source))]

    data = str(tmp_path / "data")
    assert prompts(data) == prompts(f"jsonl:{data}") == prompts([f"{data}/*"]) == ["a", "b", "d"]
    assert prompts(f"{data}/[ab].jsonl") == ["a", "b"]
    assert prompts(f"{data}/**/*.jsonl") == ["a", "b", "c"]
    assert prompts((f"{data}/b.jsonl", f"{data}/more")) == prompts(f"{data}/b.jsonl, {data}/more") == ["b", "c"]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("data/tarin.jsonl", r"data/tarin\.jsonl is missing; the nearest there is train\.jsonl$"),
        ("dota/*.jsonl", r"no file matches .*dota/\*\.jsonl; the nearest there is data$"),
        ("data/*.csv", r"no file matches .*; the nearest there is train\.jsonl$"),
        ("data/*.txt", r"1 files match .*, none of them \.jsonl or \.json"),
        ("outer", r"outer is a folder without .*; to read the folders in it as well, name .*outer/\*\*/\*\.jsonl$"),
        ("missing", r"missing is missing; the nearest there is "),
    ],
)
def test_what_is_not_there_is_told_with_the_nearest(tmp_path, spec, told):
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", [GSM8K])
    (tmp_path / "data" / "notes.txt").write_text("a")
    for named in (str(tmp_path / spec), [str(tmp_path / "data"), str(tmp_path / spec)]):
        with pytest.raises(UserError, match=told):
            sources.open(named)


def test_a_name_may_hold_commas_and_nothing_is_an_error(tmp_path):
    path = write(tmp_path / "a,b.jsonl", [GSM8K]).removeprefix("jsonl:")
    assert len(sources.open(path)) == len(sources.open(f"jsonl:{path}")) == 1
    for nothing in ("", " , ", (), ("",)):
        with pytest.raises(UserError, match="no data is named"):
            sources.open(nothing)


def test_several_files_are_read_one_behind_the_other(tmp_path):
    write(tmp_path / "a.jsonl", [GSM8K, GSM8K])
    (tmp_path / "b.json").write_text(json.dumps([{"instruction": "Add.", "input": "1, 1", "output": "2"}], indent=1))
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")]
    for spec in (paths, ",".join(paths)):
        source = sources.open(spec)
        assert len(source) == 3
        assert source[1]["messages"][0] == QUESTION and source.where(1) == f"{paths[0]} line 2"
        assert source[2]["messages"][0]["content"] == "Add.\n\n1, 1" and source.where(2) == f"{paths[1]} record 1"
    assert len(sources.open(paths[1])) == 1


def test_all_that_is_refused_of_a_file_is_counted(tmp_path):
    bad = {"prompt": 5, "response": "b"}
    spec = write(tmp_path / "a.jsonl", [GSM8K, *[bad] * 3])
    with pytest.raises(UserError) as refused:
        sources.open(spec)
    told = str(refused.value).splitlines()
    assert [line.split(": ")[0].split()[-1] for line in told] == ["2", "3", "4"]
    write(tmp_path / "a.jsonl", [GSM8K, *[bad] * 30])
    with pytest.raises(UserError, match=r"30 of 31 records refused in all; python launch/check_data.py"):
        sources.open(spec)


def test_an_array_that_breaks_off_loses_only_what_is_broken(tmp_path):
    whole = [{"prompt": "[a,\n]", "response": f"{i}"} for i in range(3)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(whole, indent=2))
    source = sources.open(str(path))
    assert [source[i]["messages"][1]["content"] for i in range(len(source))] == ["0", "1", "2"]
    path.write_text(json.dumps(whole, indent=2)[:-30])
    with pytest.raises(UserError, match=r"\A\S*a\.json record 3: not JSON: .*\Z"):
        sources.open(str(path))
    path.write_text("\n".join(map(json.dumps, whole)))
    assert sources.open(str(path)).where(2) == f"{path} line 3"


def test_tasks_are_dealt_evenly_and_answer_their_questions():
    names = tasks.TASKS[:3]
    source = sources.open("tasks", names=names, max_level=1, system="Think.", seed=20)
    for index, (level, name) in enumerate([(level, name) for level in (0, 1) for name in names] * 2):
        problem = tasks.problem(name, level, index // 6, split="train", seed=20)
        system, user, assistant = source[index]["messages"]
        assert system == SYSTEM and user == {"role": "user", "content": problem.question}
        assert assistant["reasoning_content"] == problem.reasoning
        assert tasks.score(problem, assistant["content"]) == 1.0
        assert source.where(index) == f"task {name} level {level} problem {index // 6}"
    assert source[len(source) - 1]["messages"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with TFDS data sets: exchanges (two versions), chats, pictures, and films, which are TFRecords."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    root = tmp_path_factory.mktemp("tfds")

    def prepare(name, features, made, version="1.0.0"):
        class Exchanges(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version(version)

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, manager):
                return {"train": enumerate(made), "test": enumerate(made[:1])}

            def _generate_examples(self):
                raise AssertionError("examples come from the split generators")

        Exchanges.name = name
        Exchanges(data_dir=root, file_format="array_record").download_and_prepare()

    text = tfds.features.Text()
    prepare("exchanges", {"question": text, "answer": text}, [{**GSM8K, "question": str(i)} for i in range(9)])
    prepare("exchanges", {"question": text, "answer": text}, [{**GSM8K, "question": "new"}] * 4, version="10.0.0")
    chat = {"messages": [QUESTION, {"role": "assistant", "content": "fünf"}]}
    prepare("chats", {"messages": tfds.features.Sequence({"role": text, "content": text})}, [chat])
    prepare("pictures", {"label": text}, [{"label": "cat"}])
    info = root / "films" / "1.0.0" / "dataset_info.json"
    shutil.copytree(root / "pictures", root / "films")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    return root


@pytest.fixture
def tfds_folder(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    return prepared


def test_tfds_records_are_those_written(tfds_folder):
    source = sources.open("tfds:exchanges:1.0.0", system="Think.")
    assert sorted(source[i]["messages"][1]["content"] for i in range(len(source))) == list("012345678")
    assert source[0]["messages"][2] == messages(GSM8K)[2]
    newest = sources.open("tfds:exchanges")
    assert len(newest) == 4 and newest[0]["messages"][0]["content"] == "new"
    assert len(sources.open("tfds:exchanges:test")) == 1
    assert len(sources.open("tfds:exchanges:1.0.0:train[:4]")) == 4
    assert sources.open("tfds:chats")[0]["messages"] == [QUESTION, {"role": "assistant", "content": "fünf"}]


def test_tfds_errors_say_what_there_is(tfds_folder):
    with pytest.raises(UserError, match=r"'exchange' is not prepared in .*; the nearest there is exchanges"):
        sources.open("tfds:exchange")
    with pytest.raises(UserError, match=r"'exchanges:2.0.0' is not prepared"):
        sources.open("tfds:exchanges:2.0.0")
    with pytest.raises(UserError, match=r"'exchanges', split 'trian': .*splits: .*train"):
        sources.open("tfds:exchanges:trian")
    with pytest.raises(UserError, match=r"'pictures', split 'train', record 0: .*found fields: label"):
        sources.open("tfds:pictures")
    with pytest.raises(UserError, match=r"'films', split 'train': .*prepared with file_format='array_record'"):
        sources.open("tfds:films")
    with pytest.raises(UserError, match="'tfds:exchanges:' is not of the form tfds:NAME"):
        sources.open("tfds:exchanges:")


def test_tfds_is_read_without_tensorflow(tfds_folder):
    code = (
        "import sys; from posttrain_jax.data import sources; "
        "assert len(sources.open('tfds:exchanges:1.0.0')[8]['messages']) == 2; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
