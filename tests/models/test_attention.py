"""Rotary embedding and norm of attention against NumPy, position by position."""

import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.models.architecture import RopeScaling
from posttrain_jax.models.parts import rms_norm
from posttrain_jax.models.rope import inverse_frequencies, rotate


def rotary(positions, dim, theta):
    angle = np.asarray(positions)[..., None] * inverse_frequencies(dim, theta, RopeScaling())
    return jnp.cos(angle), jnp.sin(angle)


def test_rotation_is_half_split_on_part_of_the_head():
    """Dimension i turns with i + half, i < half; dimensions from 2·half on pass through."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, 3, 10)).astype(np.float32)
    positions, rotary_dim, theta = np.array([[0, 1, 7, 500]]), 6, 1e4
    found = rotate(x, rotary(positions, rotary_dim, theta))
    expected = x.astype(np.float64)
    for t, position in enumerate(positions[0]):
        for i in range(rotary_dim // 2):
            angle = position * theta ** (-2 * i / rotary_dim)
            a, b = x[0, t, :, i].astype(np.float64), x[0, t, :, i + rotary_dim // 2].astype(np.float64)
            expected[0, t, :, i] = a * np.cos(angle) - b * np.sin(angle)
            expected[0, t, :, i + rotary_dim // 2] = b * np.cos(angle) + a * np.sin(angle)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found[..., rotary_dim:], x[..., rotary_dim:])
    np.testing.assert_array_equal(found[:, 0], x[:, 0])


def test_scores_depend_on_distance_alone():
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(i, j):
        turned = [rotate(x, rotary(np.array([[position]]), 8, 1e4)) for x, position in ((q, i), (k, j))]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_norm_is_of_the_root_mean_square_in_float32():
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32) * 1e-3
    scale = np.linspace(0.5, 2, 16, dtype=np.float32)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(rms_norm(x, scale, 1e-6), expected, rtol=1e-5)
    half = rms_norm(jnp.asarray(1e4 * x, jnp.bfloat16), scale, 1e-6)
    assert half.dtype == jnp.bfloat16 and np.isfinite(half.astype(np.float32)).all()
