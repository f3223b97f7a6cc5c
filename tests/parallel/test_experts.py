"""Experts on other devices: both ways to reach them give what one device computes, however lopsided the routing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.expert_ffn import expert_ffn_definition
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.parallel import placement, rounds
from posttrain_jax.parallel.experts import experts
from posttrain_jax.parallel.placement import Exchange

ROWS, LENGTH, HIDDEN, FFN, EXPERTS, TOP_K = 8, 6, 16, 8, 16, 2
MESHES = {
    "expert": dict(data=1, expert=8),
    "fsdp expert": dict(data=1, fsdp=2, expert=4),
    "fsdp expert context": dict(data=1, fsdp=2, expert=2, context=2),
    "expert tensor context": dict(data=1, expert=2, tensor=2, context=2),
}
FORMS = {
    "gather": Exchange("gather"),
    "one round": Exchange("ragged", 8.0),
    "rounds of 3": Exchange("ragged", 8.0, 24),
    "fetch": Exchange("fetch"),
}


def arrays(routing):
    """Tokens, choices, weights, matrices, and a cotangent."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, LENGTH, HIDDEN))
    chosen = np.argsort(rng.random((ROWS, LENGTH, EXPERTS)))[..., :TOP_K]
    if routing == "one expert":
        chosen = np.broadcast_to([11, 3], chosen.shape)
    shares = rng.random((ROWS, LENGTH, TOP_K))
    matrices = [rng.normal(size=s) / 4 for s in [(EXPERTS, HIDDEN, FFN)] * 2 + [(EXPERTS, FFN, HIDDEN)]]
    floats = [jnp.asarray(a, jnp.float32) for a in (x, shares, *matrices, rng.normal(size=x.shape))]
    return floats[0], jnp.asarray(chosen, jnp.int32), *floats[1:]


def flat(x):
    return x.reshape(-1, x.shape[-1])


QUICK = ("gather random", "fetch random", "one round random", "rounds of 3 one expert")
CASES = [
    pytest.param(name, form, routing, marks=() if f"{form} {routing}" in QUICK else pytest.mark.slow)
    for name in MESHES
    for form in FORMS
    for routing in ("random", "one expert")
]


@pytest.mark.parametrize("name, form, routing", CASES)
def test_values_and_gradients(name, form, routing):
    x, chosen, shares, *matrices, cotangent = arrays(routing)
    mesh = meshes.make_mesh(**MESHES[name])

    def there(x, shares, *matrices):
        return (experts(x, chosen, shares, *matrices) * cotangent).sum()

    def here(x, shares, *matrices):
        y = expert_ffn_definition(flat(x), flat(chosen), flat(shares), *matrices)
        return (y.reshape(x.shape) * cotangent).sum()

    run = placement.on(mesh, exchange=FORMS[form])(jax.value_and_grad(there, argnums=range(5)))
    found = jax.jit(run)(x, shares, *matrices)
    expected = jax.jit(jax.value_and_grad(here, argnums=range(5)))(x, shares, *matrices)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("form", ["gather", "rounds of 3"])
def test_six_experts_cut_over_all_eight_devices_give_the_same(form):
    """As for decoding: six do not divide over eight, so their inner widths are cut, also where tokens lie apart."""
    x, chosen, shares, *_ = arrays("random")
    mesh = meshes.make_mesh(fsdp=2, expert=2, context=2)
    rng = np.random.default_rng(3)
    shapes = [(6, HIDDEN, 512)] * 2 + [(6, 512, HIDDEN)]
    matrices = [jnp.asarray(rng.normal(size=shape) / 16, jnp.float32) for shape in shapes]
    run = jax.jit(placement.on(mesh, meshes.SAMPLE, FORMS[form])(experts))
    expected = expert_ffn_definition(flat(x), flat(chosen % 6), flat(shares), *matrices).reshape(x.shape)
    np.testing.assert_allclose(run(x, chosen % 6, shares, *matrices), expected, atol=1e-5 * np.abs(expected).max())


def test_the_number_of_rounds_is_that_of_the_fullest_pair_on_every_device():
    mesh = meshes.make_mesh(expert=4, devices=jax.devices()[:4])
    rng = np.random.default_rng(2)
    chosen = rng.integers(0, 8, (4, 10, 2)).astype(np.int32)
    chosen[2, :9] = 5  # sender 2 to receiver 2: 18 slots and more
    quota = 4

    def count(chosen):
        return rounds._plan(chosen[0], 2, "expert", quota).rounds[None]

    run = jax.shard_map(count, mesh=mesh, in_specs=jax.P("expert"), out_specs=jax.P("expert"), check_vma=False)
    loads = [[(chosen[s] // 2 == d).sum() for d in range(4)] for s in range(4)]
    assert np.max(loads) >= 18
    np.testing.assert_array_equal(run(chosen), -(-np.max(loads) // quota))
