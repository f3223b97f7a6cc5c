"""The grouped products on CPU, in chunks of rows, against a loop over the groups."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.grouped_matmul import xla

SIZES = [8, 0, 20, 4, 0, 0]


@pytest.mark.parametrize("chunks", [(4, 1), (2, 1), (1,)])
@pytest.mark.parametrize("transposed", [False, True])
def test_two_products_and_what_becomes_of_them(monkeypatch, chunks, transposed):
    monkeypatch.setattr(xla, "CHUNKS", chunks)
    draw = np.random.default_rng(0)
    rows = [draw.normal(size=(40, 5)).astype(np.float32) for _ in range(2)]
    matrices = [draw.normal(size=(6, 5, 7)).astype(np.float32) for _ in range(2)]
    held = [m.swapaxes(1, 2) for m in matrices] if transposed else matrices
    finish = lambda a, b: [a * b, a - b]  # noqa: E731
    found = xla.products(rows, held, jnp.array(SIZES), finish, block=4, transposed=transposed)
    expected = [np.zeros((40, 7)), np.zeros((40, 7))]
    for group, end in enumerate(np.cumsum(SIZES)):
        here = slice(end - SIZES[group], end)
        for out, value in zip(
            expected, finish(*(r[here] @ m[group] for r, m in zip(rows, matrices, strict=True))), strict=True
        ):
            out[here] = value
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
