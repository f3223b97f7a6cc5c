"""A product on a mesh is the product, whether or not the rows can be split as the matrix is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.parallel import placement
from posttrain_jax.parallel.embedding import embed
from posttrain_jax.parallel.linear import linear, product

MESHES = [dict(fsdp=2, expert=4), dict(expert=2, context=2, tensor=2), dict(fsdp=2, context=4), dict(tensor=8)]


@pytest.mark.parametrize("rows, length", [(8, 8), (2, 8), (3, 6), (1, 5)])
@pytest.mark.parametrize("axes", [("embed", "heads"), ("heads", "embed"), ("embed", None)])
def test_values_and_gradients(axes, rows, length):
    rng = np.random.default_rng(0)
    x, w, g = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(rows, length, 16), (16, 24), (rows, length, 24)])
    expected = jax.vjp(product, x, w)[1](g)
    for sizes in MESHES:
        mesh = meshes.make_mesh(data=1, **sizes)
        y, pull = jax.vjp(jax.jit(placement.on(mesh)(lambda x, w: linear(x, w, axes))), x, w)
        np.testing.assert_allclose(y, product(x, w), atol=1e-5)
        for a, b in zip(pull(g), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("rows, length", [(8, 8), (2, 8), (1, 5)])
def test_rows_of_an_embedding(rows, length):
    rng = np.random.default_rng(0)
    table, g = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(32, 16), (rows, length, 16)])
    tokens = rng.integers(0, 32, (rows, length))
    expected = jnp.zeros_like(table).at[tokens].add(g)
    for sizes in MESHES:
        mesh = meshes.make_mesh(data=1, **sizes)
        y, pull = jax.vjp(jax.jit(placement.on(mesh)(lambda table: embed(table, tokens))), table)
        np.testing.assert_array_equal(y, table[tokens])
        np.testing.assert_allclose(pull(g)[0], expected, atol=1e-5)
