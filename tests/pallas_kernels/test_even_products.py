"""The layout and the products of training on a CPU, where experts send blocks that they have no room for to others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import expert_ffn
from pallas_kernels.expert_ffn.rows import sort_evenly
from pallas_kernels.grouped_matmul import even

TOKENS, TOP_K, EXPERTS, HIDDEN, FFN = 150, 2, 6, 12, 20
SPREADS = {
    "even": [1 / 6] * 6,
    "uneven": [0.6, 0.02, 0.2, 0.1, 0.06, 0.02],
    "two alone": [0.5, 0, 0, 0, 0, 0.5],
    "one alone": [0, 0, 1, 0, 0, 0],
}


def choices(spread, without=0.0):
    draw = np.random.default_rng(0)
    chosen = draw.choice(EXPERTS, (TOKENS, TOP_K), p=SPREADS[spread])
    return jnp.asarray(np.where(draw.random(chosen.shape) < without, EXPERTS, chosen), jnp.int32)


@pytest.mark.parametrize("without", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spread", SPREADS)
def test_every_slot_has_a_row_of_its_own_in_a_block_of_its_expert(spread, without):
    chosen, block = choices(spread, without), 8
    slot_of_row, row_of_slot, owners = map(np.asarray, sort_evenly(chosen, EXPERTS, block))
    assert len(slot_of_row) == len(owners) * block and len(owners) % EXPERTS == 0
    chosen, rows = np.asarray(chosen), row_of_slot
    some = chosen < EXPERTS
    np.testing.assert_array_equal(owners[rows[some] // block], chosen[some])
    np.testing.assert_array_equal(slot_of_row[rows[some]], np.arange(chosen.size).reshape(chosen.shape)[some])
    assert (slot_of_row == chosen.size).sum() == len(slot_of_row) - some.sum()
    assert (slot_of_row[rows[~some]] == chosen.size).all()


def test_few_rows_leave_no_guests():
    _, _, owners = sort_evenly(jnp.arange(48).reshape(24, 2) % EXPERTS, EXPERTS, 8)
    np.testing.assert_array_equal(owners, np.repeat(np.arange(EXPERTS), len(owners) // EXPERTS))


@pytest.mark.parametrize("spread, run", [("even", 4), ("uneven", 4), ("uneven", 1), ("two alone", 4)])
def test_values_and_gradients_are_the_definition_s(monkeypatch, spread, run):
    monkeypatch.setattr(even, "RUN", run)
    draw, chosen = np.random.default_rng(1), choices(spread, 0.1)
    shapes = [(TOKENS, HIDDEN), (TOKENS, TOP_K), (EXPERTS, HIDDEN, FFN), (EXPERTS, HIDDEN, FFN), (EXPERTS, FFN, HIDDEN)]
    inputs = [jnp.asarray(draw.normal(size=shape), jnp.float32) / 4 for shape in shapes]
    cotangent = draw.normal(size=(TOKENS, HIDDEN)).astype(np.float32)

    def found(backend):
        run = lambda x, w, *matrices: expert_ffn(x, chosen, w, *matrices, backend=backend)  # noqa: E731
        y, back = jax.jit(lambda *x: jax.vjp(run, *x))(*inputs)
        return y, *back(cotangent)

    for ours, expected in zip(found("xla"), found("definition"), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)
