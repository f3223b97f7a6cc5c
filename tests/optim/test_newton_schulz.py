"""Orthogonalisation against a NumPy transcription; and that dealing matrices out over a mesh changes nothing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from posttrain_jax.optim.newton_schulz import orthogonalise, orthogonalise_all
from posttrain_jax.parallel.mesh import make_mesh


def transcribed(x, steps=5):
    """One matrix, in float64."""
    x = np.asarray(x, np.float64)
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if flip else x


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5), (1, 7), (7, 1), (1, 1), (2, 3, 6, 10)])
def test_it_is_the_transcription(shape):
    x = normal(*shape)
    found = np.asarray(orthogonalise(x)).reshape(-1, *shape[-2:])
    expected = [transcribed(matrix) for matrix in x.reshape(-1, *shape[-2:])]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(4, 9), (9, 4), (6, 6)]))
def test_singular_values_come_near_one_and_vectors_stay(seed, shape):
    x = normal(*shape, seed=seed)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    inner = u.T @ np.asarray(orthogonalise(x, steps=12)) @ vt.T
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-3)
    assert (np.diag(inner) > 0.6).all() and (np.diag(inner) < 1.3).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e6, 1e25])
def test_the_size_of_a_gradient_does_not_matter(scale):
    np.testing.assert_allclose(orthogonalise(scale * normal(4, 6)), orthogonalise(normal(4, 6)), rtol=1e-3, atol=1e-4)


def test_zeros_stay_zeros_beside_others():
    x = normal(3, 4, 6)
    x[1] = 0
    found = np.asarray(orthogonalise(x))
    assert not found[1].any() and np.isfinite(found).all() and found[0].any()


def test_bfloat16_products_stay_near():
    x = normal(16, 32)
    found = orthogonalise(x, dtype="bfloat16")
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, orthogonalise(x), atol=0.06)


STACKS = {  # shape of the stack, and the mesh axes of each axis, of a mesh data 1, fsdp 2, expert 2, tensor 2
    "attention in": ((3, 16, 32), P(None, "fsdp", "tensor")),
    "attention out": ((3, 32, 16), P(None, "tensor", "fsdp")),
    "experts in": ((3, 4, 16, 8), P(None, "expert", "fsdp", "tensor")),
    "experts out": ((3, 4, 8, 16), P(None, "expert", "tensor", "fsdp")),
    "one axis": ((16, 12), P("fsdp")),
    "two axes on one": ((5, 16, 12), P(None, ("fsdp", "tensor"))),
    "copies": ((3, 8, 10), P()),
}


@pytest.mark.parametrize("sizes", [dict(fsdp=2, expert=2, tensor=2), dict(data=4, fsdp=2), dict(fsdp=8)])
def test_dealt_out_it_is_the_same(sizes):
    mesh = make_mesh(**{"data": 1, **sizes})
    where = [NamedSharding(mesh, spec) for _, spec in STACKS.values()]
    arrays = [normal(*shape, seed=i) for i, (shape, _) in enumerate(STACKS.values())]
    placed = [jax.device_put(x, place) for x, place in zip(arrays, where, strict=True)]
    found = jax.jit(lambda xs: orthogonalise_all(xs, where))(placed)
    for name, x, y, place in zip(STACKS, arrays, found, where, strict=True):
        np.testing.assert_allclose(y, orthogonalise(x), atol=3e-6, err_msg=name)
        assert y.sharding.is_equivalent_to(place, y.ndim), name


def test_no_work_is_done_twice():
    """Eight devices take an eighth of the products each, and move shards about instead of gathering them."""
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    where = NamedSharding(mesh, P(None, "fsdp", "tensor"))
    x = jax.device_put(normal(16, 64, 128), where)
    alone = jax.jit(orthogonalise).lower(jnp.asarray(normal(16, 64, 128))).compile()
    dealt = jax.jit(lambda x: orthogonalise_all([x], [where])).lower(x).compile()
    assert dealt.cost_analysis()["flops"] < 1.05 * alone.cost_analysis()["flops"] / 8
    program = dealt.as_text()
    assert len(re.findall(r" all-to-all\(", program)) == 4
    assert not re.search(r" all-(gather|reduce)\(", program)


def test_more_matrices_than_are_held_at_once(monkeypatch):
    from posttrain_jax.optim import newton_schulz

    monkeypatch.setattr(newton_schulz, "AT_ONCE", 3)
    x = normal(8, 4, 6)
    np.testing.assert_allclose(orthogonalise_all([x])[0], orthogonalise(x), atol=1e-6)
