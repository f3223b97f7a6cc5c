"""launch/plan.py on a machine without a TPU."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import plan
import pytest

from posttrain_jax.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT / 'configs' / 'minimax_m2.py'}:tiny"
SMALL = [
    f"--config.{setting}"
    for setting in """
    model.layers=2 model.hidden=64 model.heads=2 model.kv_heads=1 model.head_dim=32 model.rotary_dim=8 model.experts=4
    model.experts_per_token=2 model.expert_ffn=32 rollout.slots=8 rollout.banks=1 rollout.decode_chunk=4
    """.split()
]
MESH = ["--topology=v5e:2x2", "--config.mesh.fsdp=2", "--config.mesh.expert=2"]
PROGRAMS = "--programs=decode,transfer"


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "--topology is missing; for instance --topology=v5p:4x4x8"),
        (["--topology=v5q:4x4x8"], "no chip 'v5q'; the nearest is v5p:4x4x8"),
        (["--topology=v5e:3x2"], "the nearest is v5e:4x2"),
        ([*MESH, "--programs=sft,decod"], "--programs: no 'decod'; the nearest is decode"),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=8"], "does not make the 4 devices of v5e:2x2; the nearest is"
         " --config.mesh.data=1 --config.mesh.fsdp=4"),
        ([*MESH, "--config.mesh.fdsp=2"], "the nearest is config.mesh.fsdp"),
        ([*MESH, "--topolgy=v5e:2x2"], "the nearest is --topology"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_bad_value_and_the_nearest_good_one(arguments, says):
    pytest.importorskip("libtpu")
    with pytest.raises(UserError, match="(?s)" + says.replace("'", ".").replace("(", ".")):
        plan.main([CONFIG, *arguments])


def test_mistakes_end_with_exit_code_2():
    command = [sys.executable, str(ROOT / "launch" / "plan.py"), CONFIG, "--topology=v5p:5", "--programs=rll"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and ended.stdout == ""
    first, second = ended.stderr.splitlines()
    assert first.startswith("error: --topology=v5p:5: ") and second.startswith("error: --programs: no 'rll'")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An empty folder in which plans are kept."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("POSTTRAIN_JAX_PLAN_CACHE", str(tmp_path / "plans"))
    return tmp_path / "plans"


def test_a_plan_as_json_is_kept_and_told_as_a_table(kept, tmp_path, capsys):
    arguments = [CONFIG, *MESH, *SMALL, PROGRAMS, "--config.rollout.sharded=true"]
    assert plan.main([*arguments, "--json", f"--output={tmp_path / 'memory.svg'}"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert "decode for v5e:2x2 compiled in" in captured.err
    assert told["measured"] is False and told["fits"] is True and told["mesh"]["fsdp"] == 2

    decode, transfer = told["programs"]
    assert (decode["program"], transfer["program"]) == ("decode", "transfer")
    for row in told["programs"]:
        assert row["memory_total"] == pytest.approx(sum(row["memory"].values())) and row["memory_total"] < row["hbm"]
        assert row["seconds"] > 0 and row["cycles"] > 0 and row["hbm_bytes"] > 0 and not row["cached"]
        assert row["bound_by"] == max(row["rooflines"], key=row["rooflines"].get)
        assert sum(c["bytes"] for c in row["collectives"]) > 0
    assert decode["tokens"] == 8 * 4 and decode["flops"] > 0
    # two layers' keys and values of 8 slots, over 4 devices
    assert decode["memory"]["cache"] > 2 * 2 * 8 * 192 * 32 * 4 / 4
    assert len(list(ElementTree.parse(tmp_path / "memory.svg").iter())) >= 10

    assert plan.main(arguments) == 0
    captured = capsys.readouterr()
    assert "compiled in" not in captured.err
    assert "compiled, not measured" in captured.out and "largest losses" in captured.out
    assert len(captured.out.splitlines()) < 40 and max(map(len, captured.out.splitlines())) <= 128

    assert plan.main([*arguments, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["programs"]
    assert [row.pop("cached") for row in again] == [True, True] and len(list(kept.iterdir())) == 2
    assert again == [{name: value for name, value in row.items() if name != "cached"} for row in told["programs"]]


def test_search_ranks_what_fits_by_time(kept, capsys):
    assert plan.main([CONFIG, *MESH, *SMALL, "--search", "--candidates=2", "--programs=transfer", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["candidates"]
    assert len(found) == 2 and {(c["mesh"]["fsdp"], c["mesh"]["expert"]) for c in found} >= {(2, 2)}
    assert [c["fits"] for c in found] == [True] * 2
    assert [c["seconds"] for c in found] == sorted(c["seconds"] for c in found)
    assert len(list(kept.iterdir())) == 2
