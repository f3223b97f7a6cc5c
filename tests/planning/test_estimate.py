"""Slices by name, work of a recipe, meshes near another, the nearest setting that fits, and the picture."""

import dataclasses
import math
from xml.etree import ElementTree

import pytest

from posttrain_jax.errors import UserError
from posttrain_jax.planning import picture, search
from posttrain_jax.planning.chips import GIB, read_slice
from posttrain_jax.planning.estimate import estimate, losses, nearest
from posttrain_jax.planning.work import work
from posttrain_jax.run.recipe import MeshShape, Recipe


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("v5q:4x4x8", "v5p:4x4x8"),
        ("v5e:3x5", "v5e:4x6"),
        ("v5p:4x4", "v5p:4x4x1"),
        ("v6e:2x2x2", "v6e:2x2"),
        ("tpu7:2x2x1", "tpu7x:2x2x1"),
        ("v5p:4x4@2", "v5p:4x4x1@2"),
        ("v5e:2x2@", "v5e:2x2@2"),
    ],
)
def test_an_unknown_slice_is_told_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=f"--topology={name}: .*the nearest is {nearest}\\b"):
        read_slice(name)


def test_a_chip_may_be_two_devices():
    part = read_slice("tpu7x:4x4x8")
    assert (part.chips, part.devices, part.chip.hbm / GIB) == (128, 256, 96)


def test_slices_may_be_several():
    part = read_slice("v5p:4x4x8@2")
    assert (part.chips, part.devices, part.name, read_slice("v5p:4x4x8@1").name) == (
        256,
        256,
        "v5p:4x4x8@2",
        "v5p:4x4x8",
    )


def test_another_mesh_over_the_devices():
    assert search.resolved(MeshShape(fsdp=16, expert=8), 128) == MeshShape(data=1, fsdp=16, expert=8)
    assert search.resolved(MeshShape(fsdp=16, expert=8), 64) is None
    near = search.nearest_mesh(MeshShape(data=1, fsdp=16, expert=8), 64)
    assert near.data * near.fsdp * near.expert * near.tensor * near.context == 64
    assert {near.fsdp, near.expert} in ({8}, {16, 4}) and near.data == near.tensor == near.context == 1


def test_candidates_begin_with_the_recipe_and_all_divide(recipe):
    found = search.candidates(recipe, 8, 12)
    assert found[0].mesh == MeshShape(data=1, fsdp=4, expert=2)
    assert len({(c.mesh, c.precision.remat) for c in found}) == len(found) == 12
    assert {c.precision.remat for c in found} == set(search.REMAT)
    for candidate in found:
        assert math.prod(dataclasses.asdict(candidate.mesh).values()) == 8 and search.divides(candidate)


def test_work_of_a_training_token_is_six_flops_a_weight_and_attention(recipe):
    own, model = work(recipe, "sft"), recipe.model
    tokens = recipe.sft.rows * recipe.sft.length
    scores = 3 * 4 * model.layers * model.heads * model.head_dim * recipe.sft.length / 2
    assert own.tokens == tokens and own.calls == recipe.sft.steps
    assert own.flops == pytest.approx(tokens * (6 * model.active_parameters + scores))


def told(recipe, **memory):
    parts = {"weights": 2 * GIB, "optimiser": 4 * GIB, "gradients": 2 * GIB, "activations": 4 * GIB, **memory}
    totals = dict.fromkeys(("core", "kernel", "copying", "assumed"), 0.0)
    totals |= {"seconds": 2.0, "waiting": 0.5, "flops": 197e12, "hbm": 819e9 / 2, "cycles": 1e9}
    return {
        "fits": True, "memory": parts, "totals": totals, "refusal": "", "cached": False, "host_bytes": 1.0,
        "compile_seconds": 1.0, "sources": [("jit(update)/while/body/closed_call/dot_general", 0.25)],
        "collectives": [{"kind": "all-gather", "axes": "fsdp", "times": 1, "bytes": 1e9, "seconds": 0.75}],
    }  # fmt: skip


def test_an_estimate_of_what_fits(recipe):
    part = read_slice("v5e:2x4")
    row = estimate(recipe, part, "sft", told(recipe))
    own = work(recipe, "sft")
    assert row["fits"] and row["memory_total"] == 12 * GIB
    assert row["mfu"] == pytest.approx(own.flops / 8 / 197e12 / 2)
    assert row["rooflines"] == {"compute": 1.0, "hbm": 0.5, "ici": 0.75, "dcn": 0} and row["bound_by"] == "compute"
    assert row["chip_hours"] == pytest.approx(2 * own.calls * 8 / 3600)
    assert {loss["what"] for loss in row["losses"]} == {
        "arithmetic beyond the model's", "waiting for links", "dot_general",
    }  # fmt: skip


def test_losses_and_the_models_arithmetic_are_the_whole_time():
    parts = {"core": 1.25, "waiting": 0.5, "copying": 0.25, "flops": 1.0}
    found = losses({"totals": parts, "sources": [("jit(f)/a", 0.25)]}, model_flops=0.75, peak=1.0)
    assert sum(loss["seconds"] for loss in found) + 0.75 == pytest.approx(1.25 + 0.5 + 0.25)


def test_what_does_not_fit_names_the_nearest_that_would(recipe):
    part = read_slice("v5e:2x4")
    row = estimate(recipe, part, "sft", told(recipe, activations=12 * GIB))
    assert not row["fits"] and row["nearest"].startswith("config.sft.microbatch_rows=8 may, with about 14 GiB")
    alone = dataclasses.replace(recipe, sft=dataclasses.replace(recipe.sft, microbatch_rows=8))
    shared = nearest(alone, part, "sft", row["memory"])
    assert shared == "config.mesh.context=2 config.mesh.fsdp=2 config.sft.microbatch_rows=4 may, with about 14 GiB"
    much = {"weights": 40 * GIB, "activations": GIB}
    assert nearest(recipe, part, "sft", much).startswith("--topology=v5e:4x8 may, with about 10 GiB")


def test_a_picture_is_an_svg_with_a_bar_for_each_program(recipe):
    row = estimate(recipe, read_slice("v5e:2x4"), "sft", told(recipe))
    root = ElementTree.fromstring(picture.svg({"title": "a < b", "programs": [row]}))
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "optimiser: 4.00 GiB" in titles and len(titles) == 4


@pytest.fixture
def recipe(arch):
    plain = Recipe(model=dataclasses.replace(arch, experts=8, kv_heads=2), mesh=MeshShape(fsdp=4, expert=2))
    sft = dataclasses.replace(plain.sft, rows=16, microbatch_rows=16, length=128)
    return dataclasses.replace(plain, sft=sft, rl=dataclasses.replace(plain.rl, microbatch_rows=8))
