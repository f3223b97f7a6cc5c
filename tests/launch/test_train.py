"""launch/train.py: what a user types, and what comes back."""

import json
import subprocess
import sys
import types
from pathlib import Path

import command_line
import pytest
import train

from posttrain_jax.errors import UserError
from posttrain_jax.run.recipe import Recipe

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "minimax_m2.py"
TINY = f"--config={CONFIG}:tiny"


@pytest.fixture(autouse=True)
def a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))


@pytest.fixture
def pipeline(monkeypatch):
    """Stands in for the stages; keeps what it was called with."""
    calls = []
    stand_in = types.SimpleNamespace(run=lambda recipe, workdir: calls.append((recipe, workdir)) or 0)
    stages = types.SimpleNamespace(pipeline=stand_in)
    monkeypatch.setitem(sys.modules, "posttrain_jax.stages", stages)
    monkeypatch.setitem(sys.modules, "posttrain_jax.stages.pipeline", stand_in)
    return calls


def mistakes(*arguments):
    with pytest.raises(UserError) as caught:
        train.main(arguments)
    return str(caught.value).splitlines()


def test_a_run_starts_with_the_recipe_and_its_config_written(pipeline, tmp_path):
    assert train.main([TINY, "--config.seed=3"]) == 0
    ((recipe, workdir),) = pipeline
    assert isinstance(recipe, Recipe) and recipe.seed == 3
    assert workdir == Path("runs/minimax_m2-tiny-seed3")
    assert json.loads((workdir / "config.json").read_text())["seed"] == 3
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "arguments, key, value",
    [
        (["--config.optimizer.nesterov"], "optimizer.nesterov", True),
        (["--config.optimizer.nesterov=True"], "optimizer.nesterov", True),
        (["--noconfig.optimizer.nesterov"], "optimizer.nesterov", False),
        (["--config.optimizer.nesterov=false"], "optimizer.nesterov", False),
        (["--config.sft.steps", "7"], "sft.steps", 7),
        (["--config.sft.steps=7", "--config.sft.steps=8"], "sft.steps", 8),
        (["--config.rl.objective.cispo.max_ratio=4"], "rl.objective.cispo.max_ratio", 4.0),
        (["--config.sft.optimizer.learning_rate=1e-2"], "sft.optimizer.learning_rate", 0.01),
        (["--config.stages=sft"], "stages", ("sft",)),
        (["--config.stages=('rl',)"], "stages", ("rl",)),
        (["--config.stages=rl", "--config.stages=sft"], "stages", ("rl", "sft")),
    ],
)
def test_overrides(pipeline, arguments, key, value):
    assert train.main([*arguments, "--workdir", "out", TINY]) == 0
    ((found, workdir),) = pipeline
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)
    assert workdir == Path("out")


def test_overrides_of_a_phase_need_not_stand_in_the_file(pipeline, tmp_path):
    (tmp_path / "own.py").write_text(
        "from posttrain_jax.run.recipe import Recipe, to_config\n"
        "def get_config():\n"
        "    c = to_config(Recipe(stages=('sft', 'again')))\n"
        "    c.phases.again = {'kind': 'sft', 'sft': {'steps': 5}}\n"
        "    return c\n"
    )
    keys = (
        "sft.steps=6",
        "sft.optimizer.learning_rate=1e-2",
        "optimizer.nesterov=false",
        "tasks.names=gcd",
        "start=base",
    )
    assert train.main(["--config=own.py", *(f"--config.phases.again.{key}" for key in keys)]) == 0
    recipe = pipeline[0][0]
    assert recipe.phases == {
        "again": {
            "kind": "sft",
            "start": "base",
            "sft": {"steps": 6, "optimizer": {"learning_rate": 0.01}},
            "optimizer": {"nesterov": False},
            "tasks": {"names": ("gcd",)},
        }
    }
    assert recipe.sft == Recipe().sft
    told = mistakes("--config=own.py", "--config.phases.agan.sft.steps=6", "--config.phases.again.sft.stps=6")
    assert "no 'agan'; the nearest is 'again'" in told[0]
    assert "the nearest is config.phases.again.sft.steps" in told[1]


def test_config_and_its_value_as_two_words(pipeline):
    assert train.main(["--config", f"{CONFIG}:tiny", "--config.seed", "1"]) == 0
    assert pipeline[0][0].seed == 1


def test_without_a_scale_the_choice_is_told_in_one_line(pipeline, capsys):
    assert train.main([f"--config={CONFIG}"]) == 0
    assert capsys.readouterr().out == "Running scale 'tiny': JAX_PLATFORMS=cpu, so the CPU does the work.\n"


def test_a_file_without_scales(pipeline, tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "from posttrain_jax.run.recipe import Recipe, to_config\n"
        "def get_config():\n    return to_config(Recipe(name='own'))\n"
    )
    assert train.main(["--config=own.py"]) == 0
    assert pipeline[0][0].name == "own" and capsys.readouterr().out == ""


def test_every_mistake_is_told_at_once(pipeline):
    told = mistakes(
        TINY, "--config.model.hiden=3", "--config.sft.steps=abc", "--worker=1", "--config.precision=3", "word",
        "--config.rl.format_reward=-1", "--config.seed", "--dry_run=maybe", "--config.optimizer.nesterov=perhaps",
    )  # fmt: skip
    expected = [
        ("'word' is not a flag",),
        ("--worker: no such flag", "--workdir"),
        ("--dry_run=maybe", "bool"),
        ("config.model.hiden: no such key", "config.model.hidden"),
        ("config.sft.steps=abc", "whole number"),
        ("--config.precision: is a section", "remat"),
        ("--config.seed: needs a value",),
        ("config.optimizer.nesterov=perhaps", "true or false"),
        ("config.rl.format_reward=-1.0", "at least 0"),
    ]
    assert len(told) == len(expected)
    for words in expected:
        assert any(all(word in line for word in words) for line in told), words
    assert not pipeline and not Path("runs").exists()


@pytest.mark.parametrize(
    "text, told",
    [
        ("def get_config(scale):\n    return undefined\n", "bad.py:2: NameError: name 'undefined' is not defined"),
        ("def get_config(scale:\n", "bad.py:1: '(' was never closed"),
        ("import nothing_of_that_name\n", "bad.py:1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1\n", "bad.py: needs a function get_config(scale) that returns an ml_collections ConfigDict"),
        ("def get_config(scale):\n    return {}\n", "bad.py: get_config must return an ml_collections ConfigDict"),
        ("def get_config(scale):\n    raise ValueError('a\\nb')\n", "bad.py:2: ValueError: a b"),
    ],
)
@pytest.mark.parametrize("scale", ["", ":tiny"])
def test_a_broken_config_file_is_one_line(tmp_path, text, told, scale):
    (tmp_path / "bad.py").write_text(text)
    (line,) = mistakes(f"--config=bad.py{scale}")
    assert line.startswith(told)


def test_a_key_that_a_config_file_misspells(tmp_path):
    (tmp_path / "own.py").write_text(
        "from posttrain_jax.run.recipe import Recipe, to_config\n"
        "def get_config():\n    c = to_config(Recipe())\n    c.sft.stpes = 3\n    return c\n"
    )
    (line,) = mistakes("--config=own.py")
    assert "config.sft.stpes: no such key; the nearest is config.sft.steps" in line


def test_a_missing_config_file_names_the_nearest():
    (line,) = mistakes("--config=configs/minimax_m2x.py:tiny")
    assert "no such file" in line and line.endswith("configs/minimax_m2.py")
    (line,) = mistakes()
    assert "--config is missing" in line and "for instance --config=configs/" in line
    (line,) = mistakes(f"--config={CONFIG}:huge")
    assert "'huge'" in line and "tiny, tools, small, full" in line


def test_the_same_command_goes_on_and_another_is_refused(pipeline):
    command = [TINY, "--workdir=out", "--config.rl.objective.cispo.max_ratio=5"]
    assert train.main(command) == 0
    assert train.main([*command, "--config.run.keep=5"]) == 0
    assert json.loads(Path("out/config.json").read_text())["run"]["keep"] == 5
    lines = mistakes(*command, "--config.seed=9", "--config.rl.objective.cispo.max_ratio=2.5")
    assert "config.rl.objective.cispo.max_ratio was 5.0 and is now 2.5" in lines
    assert "config.seed was 0 and is now 9" in lines
    assert len(lines) == 3 and "--workdir=out" in lines[2] and "choose another --workdir" in lines[2]
    assert mistakes(*command, "--config.seed=9", "--dry_run")[:-1] == ["config.seed was 0 and is now 9"]
    assert len(pipeline) == 2


def test_a_workdir_that_is_not_a_run(pipeline, tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in mistakes(TINY, "--workdir=file")[0]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text('{"seed": ')
    assert "is not JSON" in mistakes(TINY, "--workdir=out")[0]
    (tmp_path / "lost" / "checkpoints").mkdir(parents=True)
    assert "no config.json" in mistakes(TINY, "--workdir=lost")[0]
    assert not pipeline


def test_print_config_is_the_resolved_configuration(capsys, pipeline):
    assert train.main([f"--config={CONFIG}", "--print_config", "--config.sft.steps=5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["sft"]["steps"] == 5 and printed["scale"] == "tiny"
    assert not pipeline


def test_dry_run_says_what_would_be_done_and_leaves_nothing(capsys, pipeline):
    sizes = ["--config.sft.rows=32", "--config.sft.microbatch_rows=8", "--config.sft.length=128"]
    assert train.main([TINY, "--dry_run", *sizes]) == 0
    out = capsys.readouterr().out
    for word in ("scale tiny", "parameters", "steps of 4,096 tokens", "checkpoint", "runs/minimax_m2-tiny-seed0"):
        assert word in out
    assert not pipeline and not Path("runs").exists()


def test_help_lists_every_field_with_the_values_of_the_scale(capsys):
    assert train.main(["--help"]) == 0
    tiny = capsys.readouterr().out
    assert train.main([f"--config={CONFIG}:full", "--help"]) == 0
    full = capsys.readouterr().out
    assert "python launch/train.py --config=" in tiny and "--print_config" in tiny
    (layers,) = [line.split() for line in full.splitlines() if "--config.model.layers " in line]
    assert layers[1] == "62"


def test_help_is_shown_without_loading_jax():
    command = [sys.executable, "-X", "importtime", str(ROOT / "launch" / "train.py"), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0 and "--config.rl.group_size" in ended.stdout
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in ended.stderr.splitlines()}
    assert "posttrain_jax" in loaded
    assert not loaded & {"jax", "jaxlib", "flax", "tensorflow", "torch", "grain", "orbax", "reasoning_gym"}


def test_bad_input_ends_the_process_with_two(tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "train.py"), TINY, "--config.model.hiden=3"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert ended.returncode == command_line.EXIT_BAD_INPUT
    assert ended.stderr.startswith("error: config.model.hiden: no such key") and ended.stderr.count("\n") == 1
