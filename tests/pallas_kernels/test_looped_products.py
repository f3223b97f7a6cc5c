"""The grouped products on CPU, in chunks of rows, against a loop over the groups."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.grouped_matmul import grouped_matmul, xla

SIZES = [8, 0, 20, 4, 0, 0]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_two_products_and_what_becomes_of_them(transposed, large):
    draw = np.random.default_rng(0)
    rows = [draw.normal(size=(40, 5)).astype(np.float32) for _ in range(2)]
    matrices = [draw.normal(size=(6, 5, 7)).astype(np.float32) for _ in range(2)]
    held = [m.swapaxes(1, 2) for m in matrices] if transposed else matrices
    finish = lambda a, b: [a * b, a - b]  # noqa: E731
    found = xla.products(rows, held, jnp.array(SIZES), finish, block=4, transposed=transposed, large=large)
    expected = [np.zeros((40, 7)), np.zeros((40, 7))]
    for group, end in enumerate(np.cumsum(SIZES)):
        here = slice(end - SIZES[group], end)
        for out, value in zip(
            expected, finish(*(r[here] @ m[group] for r, m in zip(rows, matrices, strict=True))), strict=True
        ):
            out[here] = value
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("chunks", [(4, 1), (2, 1), (1,)])
def test_sums_over_the_rows_of_a_group(monkeypatch, chunks):
    monkeypatch.setattr(xla, "CHUNKS", chunks)
    draw = np.random.default_rng(0)
    lhs, rhs = (draw.normal(size=(40, width)).astype(np.float32) for width in (5, 7))
    found = xla.transposed_product(lhs, rhs, jnp.array(SIZES), block=4, dtype=jnp.float32)
    ends = np.cumsum(SIZES)
    expected = [lhs[end - size : end].T @ rhs[end - size : end] for size, end in zip(SIZES, ends, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("size", [64, 128, 160, 320])
def test_no_bit_of_a_row_depends_on_how_many_rows_its_group_has(size):
    draw = np.random.default_rng(0)
    lhs, rhs = draw.normal(size=(320, 48)).astype(np.float32), draw.normal(size=(2, 48, 24)).astype(np.float32)
    product = jax.jit(partial(grouped_matmul, block=32, backend="xla"))
    alone = np.asarray(product(lhs, rhs, np.array([32, 0], np.int32)))[:32]
    assert np.asarray(product(lhs, rhs, np.array([size, 0], np.int32)))[:32].tobytes() == alone.tobytes()
