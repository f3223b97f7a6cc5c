"""The grouped product, every lowering of it, against a loop over the groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import grouped_matmul

INNER, OUTER = 5, 7
RAGGED = [0, 3, 1, 0, 6, 0]
BLOCKED = [8, 0, 16, 4, 0, 0]
CASES = [("definition", RAGGED, None), ("ragged", RAGGED, None), ("definition", BLOCKED, 4), ("ragged", BLOCKED, 4)]
CASES += [("xla", BLOCKED, 4), (None, BLOCKED, 4), (None, RAGGED, None), ("xla", RAGGED, 1), ("xla", RAGGED, None)]


def arrays(sizes, spare, seed=0):
    rng = np.random.default_rng(seed)
    lhs = rng.normal(size=(sum(sizes) + spare, INNER)).astype(np.float32)
    return lhs, rng.normal(size=(len(sizes), INNER, OUTER)).astype(np.float32), jnp.array(sizes, jnp.int32)


def by_hand(lhs, rhs, sizes):
    out = np.zeros((len(lhs), rhs.shape[2]))
    start = 0
    for matrix, size in zip(rhs, np.asarray(sizes), strict=True):
        out[start : start + size] = lhs[start : start + size].astype(np.float64) @ matrix
        start += size
    return out


@pytest.mark.parametrize("backend, sizes, block", CASES)
@pytest.mark.parametrize("spare", [0, 8])
def test_forward(backend, sizes, block, spare):
    """Rows past the last group are zero."""
    lhs, rhs, group_sizes = arrays(sizes, spare)
    found = grouped_matmul(lhs, rhs, group_sizes, block=block, backend=backend)
    np.testing.assert_allclose(found, by_hand(lhs, rhs, sizes), atol=2e-6)


@pytest.mark.parametrize("backend, sizes, block", CASES)
@pytest.mark.parametrize("spare", [0, 8])
def test_gradient(backend, sizes, block, spare):
    lhs, rhs, group_sizes = arrays(sizes, spare)
    cotangent = np.random.default_rng(1).normal(size=(len(lhs), OUTER)).astype(np.float32)

    def loss(lhs, rhs):
        return (grouped_matmul(lhs, rhs, group_sizes, block=block, backend=backend) * cotangent).sum()

    d_lhs, d_rhs = jax.grad(loss, argnums=(0, 1))(lhs, rhs)
    np.testing.assert_allclose(d_lhs, by_hand(cotangent, rhs.swapaxes(1, 2), sizes), atol=2e-6)
    ends = np.cumsum(sizes)
    for g, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        np.testing.assert_allclose(d_rhs[g], lhs[end - size : end].T @ cotangent[end - size : end], atol=5e-6)


@pytest.mark.parametrize("sizes", [[0, 0, 12], [12, 0, 0], [0, 0, 0]])
@pytest.mark.parametrize("backend", ["definition", "ragged", "xla"])
def test_one_group_takes_all_or_nobody_anything(sizes, backend):
    lhs, rhs, group_sizes = arrays(sizes, 12 - sum(sizes))
    found = grouped_matmul(lhs, rhs, group_sizes, block=4, backend=backend)
    np.testing.assert_allclose(found, by_hand(lhs, rhs, sizes), atol=2e-6)


def test_group_sizes_are_data_not_shape():
    """One compiled program for every split of the rows."""
    product = jax.jit(lambda *x: grouped_matmul(*x, block=4))
    for sizes in ([8, 0, 4], [0, 12, 0], [4, 4, 4]):
        lhs, rhs, group_sizes = arrays(sizes, 0)
        np.testing.assert_allclose(product(lhs, rhs, group_sizes), by_hand(lhs, rhs, sizes), atol=2e-6)
    assert product._cache_size() == 1


def test_what_cannot_be_is_said():
    lhs, rhs, group_sizes = arrays([4, 3], 0)
    with pytest.raises(ValueError, match="backend='cuda'"):
        grouped_matmul(lhs, rhs, group_sizes, backend="cuda")
    with pytest.raises(ValueError, match="rows=7 to be a multiple of block=4"):
        grouped_matmul(lhs, rhs, group_sizes, backend="xla", block=4)
