"""Label losses of a generative reward model against torch's cross-entropy, and that place teaches nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.objectives.genrm import comparison_loss, grade_loss


def test_grades_are_torchs_cross_entropy():
    torch = pytest.importorskip("torch", reason="the oracle is torch's cross-entropy")
    rng = np.random.default_rng(0)
    logits, grades = rng.normal(size=(7, 5)).astype(np.float32), rng.integers(0, 5, 7)
    (loss, metrics), gradient = jax.value_and_grad(grade_loss, has_aux=True)(logits, grades)
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(grades))
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-5, atol=1e-7)
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(1) == grades).mean())
    sure = grade_loss(40.0 * jnp.eye(5)[jnp.array([0, 3])], jnp.array([1, 3]))[1]
    assert float(sure["distance"]) == pytest.approx(0.5)


def test_comparisons_by_hand():
    rng = np.random.default_rng(1)
    logits, swapped = rng.normal(size=(2, 9, 3)).astype(np.float32)
    labels = np.tile([-1, 0, 1], 3)
    loss, metrics = comparison_loss(logits, swapped, labels)
    logprob = lambda x: x - np.log(np.exp(x).sum())  # noqa: E731
    each = [logprob(a)[label + 1] + logprob(b)[1 - label] for a, b, label in zip(logits, swapped, labels, strict=True)]
    assert float(loss) == pytest.approx(-0.5 * np.mean(each), rel=1e-5)
    assert float(metrics["consistent"]) == pytest.approx((logits.argmax(1) - 1 == 1 - swapped.argmax(1)).mean())


def test_changing_places_changes_nothing():
    rng = np.random.default_rng(2)
    logits, swapped = rng.normal(size=(2, 6, 3)).astype(np.float32)
    labels = rng.integers(-1, 2, 6)
    here, there = comparison_loss(logits, swapped, labels), comparison_loss(swapped, logits, -labels)
    np.testing.assert_allclose(jax.tree.leaves(here), jax.tree.leaves(there), rtol=1e-6)


def test_a_preference_for_a_place_costs():
    """A model that always says +1 pays for it in one of the two orders; it is never consistent."""
    biased = jnp.tile(jnp.array([0.0, 0.0, 8.0]), (4, 1))
    loss, metrics = comparison_loss(biased, biased, jnp.array([1, 1, -1, -1]))
    assert float(loss) > 3.9 and float(metrics["consistent"]) == 0 and float(metrics["accuracy"]) == 0.5
