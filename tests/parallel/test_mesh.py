"""One training run, laid over different meshes, is one training run; and its weights really are spread."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from posttrain_jax.models.decoder import Decoder, abstract
from posttrain_jax.optim.adamw import adamw
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.stages.sft import make_loss
from posttrain_jax.stages.step import fresh_state, make_update

MESHES = {
    "one device": {"data": 1},
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    "expert=2 fsdp=4": {"expert": 2, "fsdp": 4},
    "tensor=2 fsdp=4": {"tensor": 2, "fsdp": 4},
}
STEPS, MICROBATCHES, ROWS, LENGTH = 3, 2, 8, 20


def batch(arch):
    """Packed rows of two sequences and padding, ``[microbatches, rows, length]``."""
    rng = np.random.default_rng(0)
    shape = (MICROBATCHES, ROWS, LENGTH)
    tokens = rng.integers(0, arch.vocab, shape).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=-1),
        "mask": np.broadcast_to(rng.random(LENGTH) < 0.6, shape).astype(np.float32),
        "segment_ids": np.broadcast_to(np.repeat([1, 2, 0], [9, 8, 3]), shape).astype(np.int32),
        "positions": np.broadcast_to(np.concatenate([np.arange(n) for n in (9, 8, 3)]), shape).astype(np.int32),
    }


class Training:
    """A model and its compiled update on a mesh."""

    def __init__(self, model, axes):
        self.mesh = meshes.make_mesh(**axes, devices=jax.devices()[: 1 if axes == MESHES["one device"] else 8])
        graph, state = nnx.split(model)
        self.optimizer = adamw(3e-3)
        self.weights = jax.tree.map(np.asarray, state)
        self.layout = jax.tree.map(lambda leaf: leaf.sharding, abstract(lambda: model, self.mesh)[1])
        self.update = make_update(self.optimizer, make_loss(graph), self.fresh())
        self.history, self.state = self.run(batch(model.arch), STEPS)

    def fresh(self):
        return fresh_state(jax.device_put(self.weights, self.layout), self.optimizer, self.mesh)

    def run(self, rows, steps, microbatches=MICROBATCHES):
        """Losses and gradient norms of some steps from the start, and the state after them."""
        state = self.fresh()
        rows = meshes.put_batch(rows, self.mesh, batch_axis=1)
        history = []
        for _ in range(steps):
            state, metrics = self.update(state, rows, microbatches)
            history.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        return np.array(history), state


@pytest.fixture(scope="module")
def runs(arch, make_model):
    model = make_model(arch)
    done = {}

    def run(name):
        if name not in done:
            done[name] = Training(model, MESHES[name])
        return done[name]

    return run


@pytest.mark.parametrize("name", [name for name in MESHES if name != "one device"])
def test_every_mesh_trains_alike(runs, name):
    """Losses and gradient norms of three steps within 2e-5: what remains is the order of the sums."""
    expected, history = runs("one device").history, runs(name).history
    assert expected[-1, 0] < expected[0, 0] - 0.05
    np.testing.assert_allclose(history, expected, rtol=2e-5)


PARTS = {
    "data=8": {"gate": (2, 6, 48, 24), "q": (2, 48, 64), "embed": (80, 48)},
    "fsdp=8": {"gate": (2, 6, 6, 24), "q": (2, 6, 64), "embed": (80, 6)},
    "expert=2 fsdp=4": {"gate": (2, 3, 12, 24), "q": (2, 6, 64), "embed": (80, 6)},
    "tensor=2 fsdp=4": {"gate": (2, 6, 12, 12), "q": (2, 12, 32), "embed": (40, 12)},
}


@pytest.mark.parametrize("name", PARTS)
def test_weights_and_moments_are_spread_and_stay_so(runs, name):
    """After the last update, not only at the start: an update must hand back the layout it was given."""
    state = runs(name).state
    for tree in (state.weights, optax.tree.get(state.optimizer, "mu"), optax.tree.get(state.optimizer, "nu")):
        of_name = {
            "gate": tree["stacks"][0][0]["ffn"]["gate"][...],
            "q": tree["stacks"][0][0]["attention"]["q"][...],
            "embed": tree["embed"][...],
        }
        for leaf, shape in PARTS[name].items():
            shards = of_name[leaf].addressable_shards
            assert len(shards) == 8 and {shard.data.shape for shard in shards} == {shape}, leaf


@pytest.mark.parametrize("name", MESHES)
def test_the_update_compiles_once(runs, name):
    assert runs(name).update._cache_size() == 1


def test_fewer_microbatches_are_the_same_program_and_a_smaller_batch(runs, arch):
    """``microbatches`` is an argument: rows past it are not trained on, and nothing compiles again."""
    training, full = runs("one device"), batch(arch)
    filled = np.arange(MICROBATCHES)[:, None, None] == 0
    half = {**full, "mask": full["mask"] * filled}
    junk = {name: np.where(filled, array, 7).astype(array.dtype) for name, array in half.items()}
    junk["mask"] = half["mask"]
    expected = training.run(half, 1)[0]
    np.testing.assert_allclose(training.run(junk, 1, microbatches=1)[0], expected, rtol=1e-6)
    assert abs(expected[0, 0] - training.history[0, 0]) > 1e-4
    assert training.update._cache_size() == 1


def test_a_step_that_is_not_finite_changes_nothing_but_the_count():
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    weights = nnx.State({"w": nnx.Param(jnp.ones(3), logical_axes=("norm",))})
    optimizer = adamw(0.1)
    state = fresh_state(weights, optimizer, mesh)
    update = make_update(optimizer, lambda w, b, total: ((w["w"][...] * b["x"][0]).sum() / total, {}), state)
    rows = {"x": np.ones((1, 1, 3), np.float32), "mask": np.ones((1, 1, 3), np.float32)}
    state, _ = update(state, rows, 1)
    kept = jax.tree.map(np.asarray, (state.weights, state.optimizer))
    for n in (1, 2):
        state, metrics = update(state, {**rows, "x": rows["x"] * np.nan}, 1)
        assert int(metrics["bad_in_a_row"]) == int(metrics["skipped"]) == n
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, (state.weights, state.optimizer)), kept)
    state, metrics = update(state, rows, 1)
    assert (int(metrics["bad_in_a_row"]), int(metrics["skipped"])) == (0, 2)
    assert np.all(np.asarray(state.weights["w"][...]) < kept[0]["w"][...])


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = meshes.make_mesh(fsdp=4, tensor=2)
    assert meshes.spec(("embed", "heads"), (48, 64), mesh) == P("fsdp", "tensor")
    assert meshes.spec(("embed", "heads"), (42, 63), mesh) == P()
    assert meshes.spec((None, "norm"), (8, 8), mesh) == P()
    mesh = meshes.make_mesh(data=2, fsdp=2, expert=2)
    assert meshes.spec(("batch", None), (4, 8), mesh) == P(("data", "fsdp"))
    rows = meshes.put_batch({"x": np.zeros((3, 8)), "scalar": np.float32(1)}, mesh)
    assert rows["x"].sharding.shard_shape((3, 8)) == (3, 8)


def test_a_batch_is_split_over_all_data_axes():
    mesh = meshes.make_mesh(data=2, fsdp=2, expert=2)
    rows = meshes.put_batch({"x": np.arange(32).reshape(2, 8, 2)}, mesh, batch_axis=1)["x"]
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 1, 2)}
    np.testing.assert_array_equal(rows, np.arange(32).reshape(2, 8, 2))


def test_a_mesh_axis_splits_one_axis_the_first_that_asks():
    mesh = meshes.make_mesh(fsdp=2, expert=2, context=2)
    assert meshes.spec(("embed", "heads"), (16, 16), mesh) == P(("fsdp", "expert", "context"))
    assert meshes.spec(("layers", "expert", "embed", "expert_ffn"), (3, 4, 8, 8), mesh) == P(
        None, ("expert", "fsdp"), "context"
    )
    names = ("expert", "embed", "expert_ffn")
    assert meshes.spec(names, (8, 8, 8), mesh, meshes.SAMPLE) == P(("expert", "fsdp", "context"))
    assert meshes.spec(names, (4, 8, 8), mesh, meshes.SAMPLE) == P(("expert", "fsdp"))


def test_experts_that_are_too_few_are_cut_in_whole_lanes_for_decoding():
    mesh = meshes.make_mesh(fsdp=2, expert=2, context=2)
    names = ("expert", "embed", "expert_ffn")
    assert meshes.spec(names, (6, 8, 512), mesh, meshes.SAMPLE) == P("expert", None, ("context", "fsdp"))
    assert meshes.spec(names, (6, 8, 256), mesh, meshes.SAMPLE) == P("expert", None, "context")
    assert meshes.spec(names, (6, 8, 192), mesh, meshes.SAMPLE) == P("expert")
    mesh = meshes.make_mesh(fsdp=2, expert=2, tensor=2)
    assert meshes.spec(names, (6, 8, 192), mesh, meshes.SAMPLE) == P("expert", None, "tensor")


class _Device:
    """A device of a slice, as far as a mesh looks at it."""

    def __init__(self, number, slice_index):
        self.id, self.slice_index, self.process_index = number, slice_index, number // 2
        self.platform, self.device_kind = "cpu", "cpu"


def test_data_goes_over_slices_and_everything_else_stays_inside_one():
    devices = [_Device(n, n // 4) for n in range(8)]
    mesh = meshes.make_mesh(data=4, fsdp=2, devices=devices)
    assert [[d.slice_index for d in row.flat] for row in mesh.devices] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(ValueError, match="data to be a multiple of 2"):
        meshes.make_mesh(data=1, fsdp=8, devices=devices)


def test_data_takes_the_rest_and_a_misfit_is_named():
    assert dict(meshes.make_mesh(tensor=2).shape) == {"data": 4, "fsdp": 1, "expert": 1, "tensor": 2, "context": 1}
    with pytest.raises(ValueError, match="fsdp=3.* needs 6 devices, and 8 are attached"):
        meshes.make_mesh(fsdp=3)
    with pytest.raises(ValueError, match="needs 16 devices"):
        meshes.make_mesh(expert=16)


def test_every_named_axis_of_the_model_has_a_rule(arch):
    weights = nnx.state(nnx.eval_shape(lambda: Decoder(arch, rngs=nnx.Rngs(0))))
    for param in jax.tree.leaves(weights, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        assert set(param.logical_axes) - {None} <= set(meshes.TRAIN) == set(meshes.SAMPLE)
        assert len(param.logical_axes) == param.get_value().ndim
