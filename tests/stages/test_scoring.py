"""What a reward model's score adds, in tasks and in worlds."""

import types

import numpy as np
import pytest

from posttrain_jax.data.tasks import Problem
from posttrain_jax.environments.agent import Episode
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.verdict import right, wrong
from posttrain_jax.rollout.request import Completion
from posttrain_jax.run import validate
from posttrain_jax.run.recipe import Reward
from posttrain_jax.stages.experience import Trajectory
from posttrain_jax.stages.playing import Played
from posttrain_jax.stages.scoring import Scoring


def answer(task, tokens, correct):
    completion = Completion(np.array(tokens, np.int32), np.zeros(len(tokens), np.float32), "stop")
    verdict = right("7") if correct else wrong("no")
    return Trajectory(Problem(task, 0, 0, "?", "7", "", {}), [1], completion, {}, verdict, verdict.reward)


def episode(task, segments, reward):
    played = [types.SimpleNamespace(segment=types.SimpleNamespace(tokens=np.array(s)), turns=[]) for s in segments]
    return Played(Problem(task, 0, 0, "?", "", "", {}), Episode(played, [], reward, [], "done", {}), reward)


def lengths(model, sequences):
    return np.array([float(len(tokens)) for tokens in sequences])


def test_answers_and_the_last_segments_of_episodes_are_measured_together():
    groups = [[answer("gcd", [2, 3], True), answer("gcd", [4], False)], [episode("shop", [[1] * 9, [1] * 7], 1.0)]]
    read = []
    scoring = Scoring(Reward(model_weight=0.5, length_bound=0.0), lambda m, s: (read.extend(s), lengths(m, s))[1])
    found = scoring({}, groups)
    assert read == [[1, 2, 3], [1, 4], [1] * 7] and scoring.asks
    raw = np.array([3.0, 2.0, 7.0])
    expected = np.array([1.0, 0.0, 1.0]) + 0.5 * (raw - raw.mean()) / raw.std()
    flat = [t for group in found for t in group]
    np.testing.assert_allclose([t.reward for t in flat], expected)
    assert [t.score for t in flat] == raw.tolist() and [len(group) for group in found] == [2, 1]


def test_a_world_has_weights_of_its_own_and_where_nothing_was_sampled_nothing_is_scored():
    groups = [[answer("gcd", [2, 3], True), episode("shop", [[5] * 7], 0.5), episode("code:F", [], -0.5)]]
    settings = Reward(model_weight=0.5, length_bound=0.0, domains=("shop.model=0", "shop.verifier=2"))
    [found] = Scoring(settings, lengths)({}, groups)
    assert [t.reward for t in found] == [1.0 - 0.5, 1.0, -0.5]
    assert [t.score for t in found] == [3.0, 7.0, None]


def test_a_model_that_weighs_nothing_is_not_asked():
    scoring = Scoring(Reward(), None)
    group = [answer("gcd", [2, 3], True)]
    assert not scoring.asks and scoring({}, [group]) == [group]


def test_a_world_is_a_domain_of_the_recipe_and_a_misspelt_one_is_told():
    kept = {"stages": ("sft", "reward_model", "rl")}
    validate.recipe_from({**kept, "rl": {"reward": {"domains": ("shop.model=0.5",)}}})
    with pytest.raises(UserError, match="no 'shopp' in 'shopp.model=0.5'; the nearest is 'shop'"):
        validate.recipe_from({**kept, "rl": {"reward": {"domains": ("shopp.model=0.5",)}}})
