"""launch/convert.py and a conversation with what it makes, for every family, in processes of their own."""

import base64
import dataclasses
import json
import signal
import time

import pytest
from safetensors.numpy import load_file

from posttrain_jax import hf
from posttrain_jax.chat import FORMATS
from posttrain_jax.models import glm_4_6, kimi_k2, minimax_m1, minimax_m2

SMALL = dict(vocab=300, hidden=64, expert_ffn=32, experts=4, layers=3, max_length=8192)
ARCHITECTURES = {
    "kimi_k2": dataclasses.replace(kimi_k2.TINY, **SMALL),
    "glm_4_6": dataclasses.replace(glm_4_6.TINY, **SMALL),
    "minimax_m2": dataclasses.replace(minimax_m2.TINY, **SMALL),
    "minimax_m1": dataclasses.replace(minimax_m1.TINY, **SMALL),
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}]


def write_tokenizer(folder, family):
    """Bytes and the family's special tokens: Kimi's form for Kimi, a tokenizer.json for the others."""
    names = FORMATS[family].special_tokens
    if family == "kimi_k2":
        lines = (base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
        (folder / "tiktoken.model").write_bytes(b"".join(lines))
        added = {str(256 + i): {"content": name} for i, name in enumerate(names)}
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
        return
    from posttrain_jax.chat.byte_pairs import ALPHABET

    letters = {byte: character for character, byte in ALPHABET.items()}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": 256 + i, "content": name, **flags} for i, name in enumerate(names)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "BPE", "vocab": {letters[byte]: byte for byte in range(256)}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


QUICK = ("minimax_m2", "kimi_k2")  # one of each kind of attention


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES],
)
def released(request, make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / request.param
    vocab = 512 if request.param == "kimi_k2" else 300  # Kimi reserves 256 special tokens
    hf.save(make_model(dataclasses.replace(ARCHITECTURES[request.param], vocab=vocab), param_dtype="bfloat16"), folder)
    write_tokenizer(folder, request.param)
    return folder


def test_in_a_conversation_and_out_again(launcher, released, tmp_path):
    ended = launcher.run("convert.py", f"--from_hf={released}", f"--to={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr
    assert f"{released.name}, " in ended.stdout and f"generate.py --workdir={tmp_path / 'run'}" in ended.stdout
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps(TOOLS))
    more = ["--max_prompt=900", "--max_response=8", f"--tools={tools}"]
    switches = {"glm_4_6": ["--nothinking", "--draft"], "minimax_m1": ["--nothinking"]}.get(released.name, [])
    answer = launcher.run("generate.py", f"--workdir={tmp_path / 'run'}", *more, *switches, typed="Hi\nAnd now?\n\n")
    assert answer.returncode == 0, answer.stderr
    assert "tools: get_weather" in answer.stderr and "after released step 0" in answer.stderr
    assert answer.stdout.count("<think>") >= 2 or released.name != "minimax_m2"
    ended = launcher.run("convert.py", f"--from={tmp_path / 'run'}", f"--to_hf={tmp_path / 'back'}")
    assert ended.returncode == 0, ended.stderr
    first, second = load_file(released / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    assert {file.name for file in released.iterdir()} == {file.name for file in (tmp_path / "back").iterdir()}


@pytest.mark.slow
def test_training_starts_from_a_conversion(launcher, make_model, tmp_path):
    arch = minimax_m2.TINY
    hf.save(make_model(arch, param_dtype="bfloat16"), tmp_path / "released")
    assert launcher.run("convert.py", f"--from_hf={tmp_path / 'released'}", f"--to={tmp_path / 'base'}").returncode == 0
    short = ["sft.steps=1", "sft.rows=2", "sft.microbatch_rows=2", "evaluation.problems=8", "stages=sft"]
    ended = launcher.run(
        "train.py",
        "--config=configs/minimax_m2.py:tiny",
        f"--workdir={tmp_path / 'run'}",
        f"--config.weights={tmp_path / 'base'}",
        "--config.sft.optimizer.learning_rate=0.0",
        *(f"--config.{setting}" for setting in short),
    )
    assert ended.returncode == 0, ended.stderr
    ended = launcher.run("convert.py", f"--from={tmp_path / 'run'}", f"--to_hf={tmp_path / 'back'}", "--form=bf16")
    assert ended.returncode == 0, ended.stderr
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("released", "back"))
    for name, values in first.items():
        assert (values == second[name]).all(), name  # a rate of zero leaves the weights alone


@pytest.mark.parametrize("pieces", [3, 30])
def test_a_killed_conversion_goes_on(launcher, make_model, tmp_path, pieces):
    released = tmp_path / "released"
    hf.save(make_model(dataclasses.replace(ARCHITECTURES["glm_4_6"], layers=6, experts=16)), released)
    process = launcher.start("convert.py", f"--from_hf={released}", f"--to={tmp_path / 'run'}")
    folder, deadline = tmp_path / "run" / "checkpoints" / "0.unfinished" / "arrays", time.monotonic() + 60
    while len(list(folder.glob("*/[0-9]*"))) < pieces and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "run" / "checkpoints" / "0").exists()
    assert launcher.run("convert.py", f"--from_hf={released}", f"--to={tmp_path / 'run'}").returncode == 0
    assert launcher.run("convert.py", f"--from={tmp_path / 'run'}", f"--to_hf={tmp_path / 'back'}").returncode == 0
    first, second = load_file(released / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_mistakes_are_one_line(launcher, finished, tmp_path):
    (tmp_path / "whale").mkdir()
    for arguments, words in [
        ([], "give --from_hf=DIR with --to=WORKDIR, or --from=WORKDIR with --to_hf=DIR"),
        ([f"--from_hf={tmp_path}/while", f"--to={tmp_path}/run"], "no such directory; the nearest in"),
        ([f"--from_hf={tmp_path}/whale", f"--to={tmp_path}/run"], "has no config.json"),
        ([f"--from={tmp_path}/whale", f"--to_hf={tmp_path}/back"], "no run there"),
        ([f"--from={finished}", f"--to_hf={tmp_path}/back", "--form=int8"], "--form"),
    ]:
        ended = launcher.run("convert.py", *arguments)
        assert ended.returncode == 2 and words in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    shown = launcher.run("convert.py", "--help")
    assert shown.returncode == 0 and "python launch/convert.py --from_hf=DIR" in shown.stdout
