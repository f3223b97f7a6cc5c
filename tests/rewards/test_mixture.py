"""Rewards mixed by domain, scores normalised by all before them, and what length earns taken out."""

import json

import numpy as np
import pytest

from posttrain_jax.rewards import mixture
from posttrain_jax.rewards.length_bias import correlation, without_slope
from posttrain_jax.rewards.running import Running


def test_each_domain_has_its_own_weights_or_those_that_hold_everywhere():
    weights = mixture.weights(
        {"verifier": 1.0, "model": 0.0}, ("logic.model=0.5", "logic.verifier=2"), ("logic", "art")
    )
    assert weights == {"logic": {"verifier": 2.0, "model": 0.5}, "art": {"verifier": 1.0, "model": 0.0}}
    rewards = {"verifier": [1.0, 0.0, 1.0], "model": [-2.0, 4.0, 7.0]}
    assert mixture.mixed(rewards, ["logic", "logic", "art"], weights) == [1.0, 2.0, 1.0]


@pytest.mark.parametrize(
    "entry", ["logic=0.5", "logic.model", "logic.model=-1", "logic.model=x", "music.model=1", "logic.me=1"]
)
def test_an_entry_that_names_nothing_is_refused(entry):
    with pytest.raises(ValueError, match=entry.partition("=")[0]):
        mixture.weights({"verifier": 1.0, "model": 0.0}, (entry,), ("logic",))


def test_the_running_deviation_is_that_of_everything_seen():
    parts = [np.random.default_rng(i).normal(i, 1 + i, size) for i, size in enumerate((3, 1, 40))]
    running = Running()
    for part in parts:
        running = running.seen(part)
    everything = np.concatenate(parts)
    assert (running.count, running.mean) == (44, pytest.approx(everything.mean()))
    assert running.deviation == pytest.approx(everything.std())
    np.testing.assert_allclose(
        running.normalised(everything, 1.5),
        np.clip((everything - everything.mean()) / everything.std(), -1.5, 1.5),
        rtol=1e-9,
    )
    saved = Running(**json.loads(json.dumps({"count": 44, "mean": running.mean, "squares": running.squares})))
    assert saved == running
    assert not Running().seen(np.ones(3)).normalised(np.array([1.0, 9.0]), 5.0).any()


def test_a_score_that_grows_with_length_loses_its_slope_and_no_more():
    draw = np.random.default_rng(0)
    lengths, quality = draw.integers(1, 50, 200).astype(float), draw.normal(size=200)
    biased = quality + 0.2 * lengths
    assert correlation(biased, lengths) == pytest.approx(np.corrcoef(biased, lengths)[0, 1])
    mended = without_slope(biased, lengths, bound=0.5)
    assert abs(correlation(mended, lengths)) < 1e-9 and mended.mean() == pytest.approx(biased.mean())
    assert correlation(mended, quality) > 0.99
    for fine in (quality, quality - 0.2 * lengths):
        assert np.array_equal(without_slope(fine, lengths, bound=0.5), fine)
    assert correlation(np.ones(4), np.arange(4.0)) == 0.0
