"""A choice equal to the number of experts is none; and rows are sorted alike by counting and by sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import expert_ffn, tiles
from pallas_kernels.expert_ffn import rows, sort_by_expert

TOKENS, TOP_K, EXPERTS, HIDDEN, FFN = 40, 3, 5, 128, 128


def arrays(share_without):
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, EXPERTS, (TOKENS, TOP_K))
    chosen[rng.random(chosen.shape) < share_without] = EXPERTS
    floats = [(TOKENS, HIDDEN), (TOKENS, TOP_K), (EXPERTS, HIDDEN, FFN), (EXPERTS, HIDDEN, FFN), (EXPERTS, FFN, HIDDEN)]
    return jnp.asarray(chosen, jnp.int32), [jnp.asarray(rng.normal(size=s) / 8, jnp.float32) for s in floats]


@pytest.mark.parametrize("share_without", [0.3, 1.0])
@pytest.mark.parametrize("backend", ["xla", "tpu"])
def test_it_adds_nothing_and_receives_no_gradient(backend, share_without):
    chosen, (tokens, weights, *matrices) = arrays(share_without)

    def total(backend):
        def f(tokens, weights, *matrices):
            y = expert_ffn(tokens, chosen, weights, *matrices, backend=backend)
            return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum()

        return jax.jit(jax.value_and_grad(f, argnums=range(5)))(tokens, weights, *matrices)

    expected = total("definition")
    with tiles.compiling_for("v5p"), tiles.interpreting():
        found = total(backend)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.asarray(found[1][1])[np.asarray(chosen) == EXPERTS].any()


@pytest.mark.parametrize("share_without", [0.0, 0.3, 1.0])
def test_sorting_and_counting_lay_the_same_rows(monkeypatch, share_without):
    chosen, _ = arrays(share_without)
    counted = sort_by_expert(chosen, EXPERTS, 8)
    monkeypatch.setattr(rows, "FEW_PAIRS", 0)
    for a, b in zip(sort_by_expert(chosen, EXPERTS, 8), counted, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
