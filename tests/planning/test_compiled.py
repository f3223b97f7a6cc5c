"""What is read from a program that the real TPU compiler made, against what is known of it by hand."""

import dataclasses
import importlib.util
import os
import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import tpu_compiler
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.planning import hlo
from posttrain_jax.planning.chips import read_slice
from posttrain_jax.planning.collectives import BETWEEN, Layout
from posttrain_jax.planning.reading import read_program
from posttrain_jax.planning.schedule import Walk
from posttrain_jax.run.recipe import MeshShape
from posttrain_jax.run.validate import recipe_from

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")),
    reason='no libtpu: pip install -e ".[tpu]"',
)

LAYERS, ROWS, WIDTH = 5, 64, 256
CONFIGS = Path(__file__).parents[2] / "configs"
FULL = [("kimi_k2", "v5p:8x8x8"), ("glm_4_6", "v5p:4x8x8"), ("minimax_m1", "v5p:8x8x8")]


@pytest.fixture(scope="module")
def compiled():
    """Layers whose weights are gathered over one axis inside a scan, then a sum over the other; and its device mesh."""
    devices = np.array(tpu_compiler.devices("v5e:2x2")).reshape(2, 2)
    mesh = Mesh(devices, ("data", "fsdp"))

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(None, "fsdp"), P("data")), out_specs=P(), check_vma=False)
    def run(weights, x):
        def layer(x, part):
            whole = jax.lax.all_gather(part, "fsdp", tiled=True)
            return jnp.tanh(x @ whole), None

        x = jax.lax.scan(layer, x, weights)[0]
        crossed = jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True)
        return jax.lax.psum(crossed.astype(jnp.float32), "data")

    shapes = (LAYERS, WIDTH, WIDTH), (ROWS, WIDTH)
    specs = P(None, "fsdp"), P("data")
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    with tpu_compiler.uncached():
        done = jax.jit(run).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
    places = np.array([d.coords[:2] for d in devices.flatten()])
    return hlo.read(done.as_text()), Layout(dict(mesh.shape), read_slice("v5e:2x2"), places)


@pytest.fixture(scope="module")
def totals(compiled):
    return Walk(*compiled).whole()


def test_the_scan_is_one_loop_with_as_many_turns_as_layers(compiled):
    module, _ = compiled
    loops = [
        hlo.trip_count(module, computation, one)
        for computation in module.computations.values()
        for one in computation.instructions
        if one.opcode == "while"
    ]
    assert loops == [LAYERS]


def test_collectives_have_the_bytes_and_the_axis_that_they_were_written_with(totals):
    found = {key: numbers[:2] for key, numbers in totals.collectives.items()}
    rows = ROWS // 2
    half = 1 / 2  # a device sends what it does not keep: (n - 1) / n
    assert found == {
        ("all-gather", ("fsdp",)): [LAYERS, LAYERS * WIDTH * WIDTH * 2 * half],
        ("all-to-all", ("fsdp",)): [1, rows * WIDTH * 2 * half],
        ("all-reduce", ("data",)): [1, 2 * rows * WIDTH * 4 * half],
    }
    assert all(numbers[2] > 0 for numbers in totals.collectives.values())


def test_products_are_counted_at_every_turn(totals):
    assert totals.flops == LAYERS * 2 * (ROWS // 2) * WIDTH * WIDTH


def test_time_is_work_and_waiting(totals):
    assert totals.cycles > 0
    assert totals.seconds == pytest.approx(totals.core + totals.waiting + totals.copying)
    assert totals.waiting <= totals.links + 1e-12


def test_weights_are_read_once_from_memory(totals):
    """A turn reads a layer's part and writes and reads the gathered whole, if that is not kept in VMEM."""
    part, whole = WIDTH * WIDTH * 2 / 2, WIDTH * WIDTH * 2
    assert LAYERS * part <= totals.hbm <= LAYERS * (part + 2 * whole) + 8 * ROWS * WIDTH * 4


@pytest.mark.slow
def test_minimax_m2_at_full_size_fits_on_128_chips():
    """Its SFT step, as the recipe has it: a device's share of weights and moments, and a loop of 62 layers."""
    recipe = recipe_from(runpy.run_path(str(CONFIGS / "minimax_m2.py"))["get_config"]("full"))
    told = read_program(recipe, read_slice("v5p:4x4x8"), "sft")
    weights = 4 * recipe.model.parameters / 128
    assert told.fits and sum(told.memory.values()) < 95 * 2**30
    assert told.memory["weights"] == pytest.approx(weights, rel=0.01)
    assert told.memory["optimiser"] == pytest.approx(weights / 2, rel=0.02)  # one moment, in bfloat16
    gathers = {row["axes"]: row["times"] for row in told.collectives if row["kind"] == "all-gather"}
    assert gathers["fsdp"] > recipe.model.layers


@pytest.mark.slow
@pytest.mark.parametrize("family, topology", FULL)
def test_the_other_families_at_full_size_fit_too(family, topology):
    """Each family's SFT step, as its recipe has it: every chip holds its even share of the weights, and all fits."""
    recipe = recipe_from(runpy.run_path(str(CONFIGS / f"{family}.py"))["get_config"]("full"))
    part = read_slice(topology)
    told = read_program(recipe, part, "sft")
    assert told.fits and sum(told.memory.values()) < part.chip.hbm
    assert told.memory["weights"] == pytest.approx(4 * recipe.model.parameters / part.devices, rel=0.03)
    assert any(row["kind"] == "all-gather" and row["times"] > recipe.model.layers for row in told.collectives)


def test_between_slices_nothing_but_gradients_travels_and_moments_may_wait_on_the_hosts():
    """Two slices hold copies of the weights: what goes from one to the other is their gradients, added up."""
    recipe = recipe_from(runpy.run_path(str(CONFIGS / "minimax_m2.py"))["get_config"]("tiny"))
    recipe = dataclasses.replace(
        recipe,
        mesh=MeshShape(data=2, fsdp=4),
        sft=dataclasses.replace(recipe.sft, rows=8, microbatch_rows=8, length=128),
        optimizer=dataclasses.replace(recipe.optimizer, offload=True),
    )
    told = read_program(recipe, read_slice("v5e:2x2@2"), "sft")
    moved = sum(row["bytes"] for row in told.collectives if row["kind"].endswith(BETWEEN))
    gradients = 4 * recipe.model.parameters / 4  # of what a device of four holds, in float32
    assert gradients * 0.97 < moved < gradients * 2  # in whole tiles of 4 KB
    assert told.memory["optimiser"] < 100 and told.memory["weights"] > 4 * recipe.model.parameters / 4
    assert told.totals["seconds"] >= moved / 3.125e9


def test_a_mesh_may_split_an_axis_of_the_torus():
    """Eight chips of fsdp and two of context share two axes of four."""
    mesh = make_mesh(fsdp=8, expert=8, context=2, devices=tpu_compiler.devices("v5p:4x4x8"))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 8, "expert": 8, "tensor": 1, "context": 2}
    experts = [device.coords for device in mesh.devices[0, 0, :, 0, 0]]
    assert len({coordinates[:2] for coordinates in map(tuple, experts)}) == 1  # along the ring of eight
