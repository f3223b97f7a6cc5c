"""The loss that a recipe names: the registry, what is added to it, and that it is the same however a batch is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import token_logprobs
from posttrain_jax.models.decoder import Decoder
from posttrain_jax.objectives.kl import kl_estimate
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.rollout.request import Completion
from posttrain_jax.run.recipe import OBJECTIVES, RL, Objective, Sampling
from posttrain_jax.stages.critic import split_critic, with_critic
from posttrain_jax.stages.experience import Trajectory
from posttrain_jax.stages.hindsight import make_hindsight
from posttrain_jax.stages.packing import add_ptx, pack
from posttrain_jax.stages.policy import DEFAULTS, advantages_and_aggregation, make_loss
from posttrain_jax.stages.rl import Preparation

LENGTH = 32
MESH = make_mesh(devices=jax.local_devices()[:1])


def recipe(name="cispo", **settings):
    sections = {key: value for key, value in settings.items() if key not in {f.name for f in dataclasses.fields(RL)}}
    rest = {key: value for key, value in settings.items() if key not in sections}
    sizes = dict(prompts=4, group_size=3, minibatches=2, length=LENGTH, microbatch_rows=2)
    return RL(**{**sizes, **rest}, objective=Objective(name=name, **sections))


def groups(seed=0):
    """Four prompts of three answers each, with rewards, as `collecting.collect` gives them."""
    rng = np.random.default_rng(seed)

    def one():
        prompt, count = rng.integers(1, 80, rng.integers(2, 6)).tolist(), int(rng.integers(3, 12))
        completion = Completion(rng.integers(1, 80, count), -4 - 0.3 * rng.random(count).astype(np.float32), "stop")
        return Trajectory(None, prompt, completion, {}, None, float(rng.normal()))

    return [[one() for _ in range(3)] for _ in range(4)]


def gradient_of(graph, weights, settings, batch, filled, reference=None):
    """Loss, gradient and metrics of a whole batch, its microbatches added up."""
    hindsight = make_hindsight(graph, settings)
    batch = hindsight(weights, reference, batch, filled) if hindsight else batch
    total = jnp.maximum(batch["mask"].sum(), 1.0)
    compiled = jax.jit(jax.value_and_grad(make_loss(graph, settings), has_aux=True))
    parts = [compiled(weights, jax.tree.map(lambda x, i=i: x[i], batch), total) for i in range(filled)]
    return jax.tree.map(lambda *x: sum(x), *parts)


@pytest.fixture(scope="module")
def split(model):
    return nnx.split(model)


def test_every_name_of_the_recipe_is_known():
    assert tuple(DEFAULTS) == OBJECTIVES
    assert advantages_and_aggregation(Objective(name="k2", aggregation="prompt_mean")) == ("centred", "prompt_mean")


# one of each loss and of each aggregation
@pytest.mark.parametrize("name", ["cispo", "dr_grpo", "gspo", "ppo", "rloo", "k2", "k2_5"])
def test_how_the_batch_is_cut_makes_no_difference(name, split):
    """One row a microbatch or many: the same loss, metrics and gradient, for the objective's own aggregation."""
    graph, weights = split
    weights = with_critic(weights) if name == "ppo" else weights
    found = []
    for rows in (1, 8):
        settings = recipe(name, microbatch_rows=rows)
        prepare = Preparation(settings, LENGTH, 16, MESH)
        (first, *_) = prepare.minibatches(groups())
        filled, batch, _ = prepare(first, None)
        assert filled == (1 if rows == 8 else int((np.asarray(batch["mask"]).sum((1, 2)) > 0).sum()))
        found.append(gradient_of(graph, weights, settings, batch, filled))
    (a, metrics), b = found[0][0], found[0][1]
    np.testing.assert_allclose(found[1][0][0], a, rtol=2e-5, atol=1e-6)
    for key, value in metrics.items():
        np.testing.assert_allclose(found[1][0][1][key], value, rtol=1e-4, atol=1e-6, err_msg=key)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(b))
    assert largest > 0
    for x, y in zip(jax.tree.leaves(found[1][1]), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * largest)


def test_weights_of_a_minibatch_are_the_aggregations(split):
    for name in OBJECTIVES:
        prepare = Preparation(recipe(name), LENGTH, 16, MESH)
        for minibatch in prepare.minibatches(groups()):
            _, batch, _ = prepare(minibatch, None)
            lengths = [len(t.completion.tokens) for group in minibatch for t, _ in group]
            expected = {
                "token_mean": 1.0,
                "sequence_mean": 1.0,
                "sequence_sum": sum(lengths) / len(lengths) / 16,
                "prompt_mean": 1.0,
            }[DEFAULTS[name].aggregation]
            assert float(batch["weights"].sum()) == pytest.approx(expected, rel=1e-5)
            assert not np.asarray(batch["weights"])[np.asarray(batch["mask"]) == 0].any()


def test_the_reference_adds_its_divergence(split, arch, make_model):
    graph, weights = split
    other = nnx.state(Decoder(arch, rngs=nnx.Rngs(5)))
    prepare = Preparation(recipe(), LENGTH, 16, MESH)
    filled, batch, _ = prepare(prepare.minibatches(groups())[0], None)
    plain, _ = gradient_of(graph, weights, recipe(), batch, filled)
    with_kl, _ = gradient_of(graph, weights, recipe(kl_weight=0.3), batch, filled, other)

    def logprobs(weights, i):
        model = nnx.merge(graph, weights)
        hidden = model.hidden(*(batch[n][i] for n in ("tokens", "positions", "segment_ids")))
        return token_logprobs(hidden, model.head[...], batch["targets"][i])[0]

    expected = sum(
        (kl_estimate(logprobs(weights, i), logprobs(other, i)) * batch["weights"][i]).sum() for i in range(filled)
    )
    assert float(with_kl[1]["reference_kl"]) == pytest.approx(float(expected), rel=1e-4)
    assert float(with_kl[0] - plain[0]) == pytest.approx(0.3 * float(expected), rel=1e-3)


def test_importance_sampling_is_truncated_by_the_trainers_own_probabilities(split):
    """What the sampler said becomes a factor on a token's weight; the ratio begins at 1."""
    graph, weights = split
    settings = recipe(sampler_cap=1.5)
    prepare = Preparation(settings, LENGTH, 16, MESH)
    filled, batch, _ = prepare(prepare.minibatches(groups())[0], None)
    before = np.asarray(batch["old_logprobs"])
    after = make_hindsight(graph, settings)(weights, None, batch, filled)
    np.testing.assert_array_equal(after["sampler_logprobs"], before)
    (_, metrics), _ = gradient_of(graph, weights, settings, batch, filled)
    mask = np.asarray(batch["mask"])
    factor = np.minimum(np.exp((np.asarray(after["old_logprobs"]) - before) * mask), 1.5)
    counted = (np.asarray(batch["weights"]) * factor).sum()
    assert float(metrics["ratio"]) == pytest.approx(counted, rel=1e-4) and float(metrics["kl"]) < 1e-6
    assert counted != pytest.approx(1.0, rel=1e-2)


def test_ptx_is_the_likelihood_of_the_sft_rows_at_temperature_one(split):
    graph, weights = split
    rng = np.random.default_rng(7)
    tokens = rng.integers(1, 80, (3, LENGTH + 1)).astype(np.int32)
    sft = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1)),
        "segment_ids": np.ones((3, LENGTH), np.int32),
        "mask": (rng.random((3, LENGTH)) < 0.5).astype(np.float32),
    }
    minibatch = [pair for group in Preparation(recipe(), LENGTH, 16, MESH).minibatches(groups())[0] for pair in group]
    filled, plain = pack(minibatch, rows=2, length=LENGTH, capacity=8)
    count, batch = add_ptx(filled, plain, sft)
    assert count == filled + 2 and batch["ptx"].sum() == pytest.approx(1.0)
    assert not batch["mask"][filled:].any() and not batch["ptx"][:filled].any()
    hot = Sampling(temperature=0.7)
    without = gradient_of(graph, weights, recipe(sampling=hot), plain, filled)[0]
    with_ptx = gradient_of(graph, weights, recipe(sampling=hot, ptx_weight=0.2), batch, count)[0]
    model = nnx.merge(graph, weights)
    hidden = model.hidden(sft["tokens"], sft["positions"], sft["segment_ids"])
    expected = -(token_logprobs(hidden, model.head[...], sft["targets"])[0] * sft["mask"]).sum() / sft["mask"].sum()
    assert float(with_ptx[1]["ptx_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(with_ptx[0] - without[0]) == pytest.approx(0.2 * float(expected), rel=1e-4)
    assert float(with_ptx[1]["entropy"]) == pytest.approx(float(without[1]["entropy"]), rel=1e-5)


def test_the_critic_learns_the_returns_and_leaves_the_policy_its_form(split):
    graph, weights = split
    with_one = with_critic(weights)
    policy, critic = split_critic(with_one)
    assert split_critic(weights)[0] is weights and split_critic(weights)[1] is None
    assert jax.tree.structure(policy) == jax.tree.structure(weights)
    assert not np.any(critic(jnp.ones((1, 2, 48))))
    settings = recipe("ppo")
    prepare = Preparation(settings, LENGTH, 16, MESH)
    filled, batch, _ = prepare(prepare.minibatches(groups())[0], None)
    after = make_hindsight(graph, settings)(with_one, None, batch, filled)
    mask = np.asarray(batch["mask"])
    advantages = np.asarray(after["advantages"])
    assert advantages[mask > 0].mean() == pytest.approx(0, abs=1e-6)
    assert advantages[mask > 0].std() == pytest.approx(1, abs=1e-3) and not advantages[mask == 0].any()
    (_, metrics), gradient = gradient_of(graph, with_one, settings, batch, filled)
    expected = 0.5 * (np.square(np.asarray(after["returns"])) * np.asarray(batch["weights"])).sum()
    assert float(metrics["value_loss"]) == pytest.approx(expected, rel=1e-4)
    assert np.any(gradient["critic"]["weight"].get_value())


def test_the_mismatch_is_measured_on_what_the_newest_policy_drew(split):
    """Tokens of older policies are far from the trainer's probabilities for another reason."""
    graph, weights = split
    prepare = Preparation(recipe(), LENGTH, 16, MESH)
    filled, batch, _ = prepare(prepare.minibatches(groups())[0], None)
    fresh = np.asarray(batch["mask"]) * (np.random.default_rng(0).random(batch["mask"].shape) < 0.5)
    old = np.where(fresh > 0, batch["old_logprobs"], -50.0) * np.asarray(batch["mask"])
    (_, plain), _ = gradient_of(graph, weights, recipe(), {**batch, "fresh": jnp.asarray(fresh)}, filled)
    (_, apart), _ = gradient_of(
        graph, weights, recipe(), {**batch, "fresh": jnp.asarray(fresh), "old_logprobs": jnp.asarray(old)}, filled
    )
    assert float(plain["fresh"]) == pytest.approx(fresh.sum() / np.asarray(batch["mask"]).sum(), rel=1e-5)
    assert float(apart["mismatch"]) == pytest.approx(float(plain["mismatch"]), rel=1e-5)
