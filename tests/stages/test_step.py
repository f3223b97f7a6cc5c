"""The compiled update: accumulation, a count that is no shape, and steps that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.models.decoder import abstract, materialise
from posttrain_jax.optim.adamw import adamw
from posttrain_jax.optim.schedules import schedule
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.stages import sft
from posttrain_jax.stages.step import HOST, TrainState, abstract_state, fresh_state, layout, make_update


def optimizer():
    return adamw(schedule("cosine", 1e-2, 10), beta1=0.9, beta2=0.95, epsilon=1e-15, weight_decay=0.1, clip_norm=1.0)


def squared_error(weights, batch, total):
    error = (batch["x"] @ weights["w"] + weights["b"] - batch["y"]) * batch["mask"]
    return (error**2).sum() / total, {"largest": abs(error).max()}


def state():
    weights = {"w": jnp.arange(3.0), "b": jnp.float32(0.5)}
    return TrainState(weights, optimizer().init(weights), jnp.int32(0), jnp.int32(0))


def make():
    return make_update(optimizer(), squared_error, state())


def batch(capacity, rows, filled, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(capacity, rows, 3)), rng.normal(size=(capacity, rows))
    mask = (rng.random((capacity, rows)) < 0.7) & (np.arange(capacity) < filled)[:, None]
    return {name: np.asarray(array, np.float32) for name, array in {"x": x, "y": y, "mask": mask}.items()}


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def close(found, expected, rtol=1e-5, atol=1e-7):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected)


def test_microbatches_add_up_to_the_whole_batch():
    small, update = batch(4, 2, filled=4), make()
    whole = {name: array.reshape(1, 8, *array.shape[2:]) for name, array in small.items()}
    found, numbers = update(state(), small, 4)
    expected, same = update(state(), whole, 1)
    close(found.weights, expected.weights)
    close(found.optimizer, expected.optimizer)
    for name in ("loss", "grad_norm", "tokens"):
        assert float(numbers[name]) == pytest.approx(float(same[name]), rel=1e-5)
    by_hand = jax.grad(lambda w: squared_error(w, jax.tree.map(lambda a: a[0], whole), whole["mask"].sum())[0])
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(by_hand(state().weights))))
    assert float(numbers["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert float(numbers["tokens"]) == small["mask"].sum()


def test_the_number_of_microbatches_compiles_nothing_again():
    update = make()
    for filled in (1, 4, 2, 3):
        found, _ = update(state(), batch(4, 2, filled), filled)
        cut = jax.tree.map(lambda array: array[:filled], batch(4, 2, filled))  # noqa: B023
        expected, _ = make()(state(), cut, filled)
        close(found.weights, expected.weights)
    assert update._cache_size() == 1


@pytest.mark.parametrize("name, value", [("x", np.nan), ("y", np.inf), ("y", 3e38)])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(name, value):
    update = make()
    good, bad = batch(2, 2, 2, seed=1), batch(2, 2, 2)
    bad["mask"][:], bad[name][1, 1] = 1, value
    before, _ = update(state(), good, 2)
    kept = bits((before.weights, before.optimizer))
    for count in (1, 2):
        before, numbers = update(before, bad, 2)
        assert bits((before.weights, before.optimizer)) == kept
        assert (int(before.bad_in_a_row), int(before.skipped)) == (count, count)
        assert (int(numbers["bad_in_a_row"]), int(numbers["skipped"])) == (count, count)
    after, numbers = update(before, good, 2)
    assert (int(after.bad_in_a_row), int(after.skipped)) == (0, 2)
    once, _ = update(state(), good, 2)
    twice, _ = update(once, good, 2)
    assert bits((after.weights, after.optimizer)) == bits((twice.weights, twice.optimizer))
    assert bits(after.weights) != kept[: len(bits(after.weights))] and np.isfinite(float(numbers["loss"]))


def test_a_batch_without_a_trained_token_is_no_division_by_zero():
    empty = batch(1, 2, filled=0)
    found, numbers = make()(state(), empty, 1)
    assert float(numbers["loss"]) == 0.0 and int(found.skipped) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_the_real_loss_adds_up_too(arch, make_model):
    mesh = make_mesh(devices=jax.devices()[:1])
    graph, shapes = abstract(lambda: make_model(arch), mesh)
    weights = materialise(lambda: make_model(arch), shapes)
    rng = np.random.default_rng(3)
    rows, length = 16, 24
    tokens = rng.integers(0, arch.vocab, (rows, length)).astype(np.int32)
    whole = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "segment_ids": np.ones((rows, length), np.int32),
        "mask": (rng.random((rows, length)) < 0.5).astype(np.float32),
    }
    ends = []
    for capacity in (1, 2):
        cut = {name: array.reshape(capacity, rows // capacity, length) for name, array in whole.items()}
        begun = fresh_state(jax.tree.map(jnp.copy, weights), optimizer(), mesh)
        update = make_update(optimizer(), sft.make_loss(graph), begun)
        ends.append(update(begun, cut, capacity))
    (one, numbers), (two, same) = ends
    assert float(numbers["loss"]) == pytest.approx(float(same["loss"]), rel=1e-5)
    assert float(numbers["grad_norm"]) == pytest.approx(float(same["grad_norm"]), rel=1e-4)
    close(nnx.to_pure_dict(one.weights), nnx.to_pure_dict(two.weights), rtol=1e-3, atol=2e-4)


def test_fresh_and_abstract_states_agree(arch, make_model):
    mesh = make_mesh(data=-1)
    _, shapes = abstract(lambda: make_model(arch), mesh)
    fresh = fresh_state(materialise(lambda: make_model(arch), shapes), optimizer(), mesh)
    expected = abstract_state(shapes, optimizer(), mesh)
    assert jax.tree.structure(fresh) == jax.tree.structure(expected)
    for found, wanted in zip(jax.tree.leaves(fresh), jax.tree.leaves(expected), strict=True):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        assert found.sharding.is_equivalent_to(wanted.sharding, found.ndim)


def kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.ndim}


@pytest.mark.parametrize("devices", [1, 4])
def test_moments_that_wait_on_the_hosts_change_no_bit(arch, make_model, devices):
    mesh = make_mesh(fsdp=devices, devices=jax.devices()[:devices])
    _, shapes = abstract(lambda: make_model(arch), mesh)

    def loss(weights, batch, total):
        return batch["scale"] * sum((w**2).sum() for w in jax.tree.leaves(weights)) / total, {}

    ends = []
    for offload in (False, True):
        now = fresh_state(materialise(lambda: make_model(arch), shapes), optimizer(), mesh, offload=offload)
        update = make_update(optimizer(), loss, now)
        for scale in (1.0, np.nan, 0.5):  # the one in the middle is not taken
            now, _ = update(now, {"mask": np.ones((1, 1), np.float32), "scale": np.full(1, scale, np.float32)}, 1)
        assert int(now.skipped) == 1 and update._cache_size() == 1
        assert kinds(now.optimizer) == ({HOST} if offload else {"device"}) and kinds(now.weights) == {"device"}
        assert layout(now) == layout(abstract_state(shapes, optimizer(), mesh, offload=offload))
        ends.append(bits(now))
    assert ends[0] == ends[1]
