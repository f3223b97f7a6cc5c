"""Learning rates against their formulas, step by step."""

import numpy as np
import pytest

from posttrain_jax.optim.schedules import schedule


def half_cosine(part):
    return 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * min(part, 1.0)))


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
def test_every_step(kind):
    path = schedule(kind, 2e-3, 100, warmup_steps=20, final_ratio=0.1, decay_share=0.3)
    for step in range(120):
        if step <= 20:
            expected = step / 20
        else:
            falling = {"constant": 0.0, "cosine": (step - 20) / 80, "wsd": max(step - 70, 0) / 30}[kind]
            expected = half_cosine(falling)
        assert float(path(step)) == pytest.approx(2e-3 * expected, rel=1e-5, abs=1e-10), step


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
@pytest.mark.parametrize(("steps", "warmup"), [(5, 5), (1, 10), (0, 0), (1, 0), (10, 9)])
def test_edges(kind, steps, warmup):
    values = [float(schedule(kind, 1e-3, steps, warmup_steps=warmup)(step)) for step in range(15)]
    assert np.isfinite(values).all() and max(values) <= 1e-3 * (1 + 1e-6)
    assert values[warmup] == pytest.approx(1e-3)


def test_without_warm_up_it_begins_at_the_peak():
    assert float(schedule("cosine", 1e-3, 10)(0)) == pytest.approx(1e-3)
    flat = schedule("cosine", 1e-3, 10, final_ratio=1.0)
    assert all(float(flat(step)) == pytest.approx(1e-3) for step in range(12))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="no schedule 'linear'; known: constant, cosine, wsd"):
        schedule("linear", 1e-3, 10)
