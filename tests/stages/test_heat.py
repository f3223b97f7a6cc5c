"""posttrain_jax.stages.heat: the temperature of a stage; what is trained has that of what was drawn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.run.recipe import RL, Objective, Sampling
from posttrain_jax.stages.heat import Heat
from posttrain_jax.stages.policy import make_loss


def never(weights, temperature):
    raise AssertionError("nothing was to be measured")


def test_it_falls_along_half_a_cosine():
    heat = Heat(Sampling(temperature=1.2, final=0.4), 9, never)
    path = [heat.at(None, step) for step in range(1, 10)]
    assert path == pytest.approx([0.8 + 0.4 * math.cos(math.pi * i / 8) for i in range(9)])
    assert Heat(Sampling(temperature=1.2, final=0.4), 1, never).at(None, 1) == pytest.approx(1.2)


def test_it_rises_at_a_plateau_as_far_as_little_is_lost():
    rates = {1.0: 0.5, 1.1: 0.495, 1.2: 0.48, 1.3: 0.495, 1.4: 0.6}
    asked = []

    def measure(weights, temperature):
        asked.append((weights, temperature))
        return rates[temperature]

    heat = Heat(Sampling(plateau=2, highest=1.3, most_lost=0.01), 100, measure)
    for reward in (0.1, 0.2, 0.2, 0.3):
        assert heat.at("w", 0) == 1.0
        heat.observe(reward)
    assert heat.at("w", 0) == 1.0 and not asked, "rewards have risen"
    heat.observe(0.1)
    assert heat.at("v", 0) == 1.3, "1.2 loses too much, but 1.3 does not"
    assert asked == [("v", t) for t in (1.0, 1.1, 1.2, 1.3)]
    asked.clear()
    for _ in range(4):
        assert heat.at("w", 0) == 1.3
        heat.observe(0.1)
    assert heat.at("w", 0) == 1.3 and not asked, "there is nothing above the highest"


def test_it_stays_where_every_rise_costs_too_much():
    heat = Heat(Sampling(plateau=1), 100, lambda weights, temperature: 1.0 - temperature)
    heat.observe(0.5)
    heat.observe(0.5)
    assert heat.at(None, 3) == 1.0 and heat.rewards == []


def test_a_saved_state_goes_on_the_same():
    def fresh():
        return Heat(Sampling(plateau=2, highest=1.5), 100, lambda weights, temperature: -max(temperature, 1.2))

    rewards = [math.sin(3 * i) for i in range(30)]
    whole, path = fresh(), []
    for reward in rewards:
        path.append(whole.at(None, 0))
        whole.observe(reward)
    assert path[0] == 1.0 and path[-1] == 1.2
    for cut in range(30):
        first, second = fresh(), fresh()
        for reward in rewards[:cut]:
            first.at(None, 0)
            first.observe(reward)
        second.restore(first.state())
        for reward, expected in zip(rewards[cut:], path[cut:], strict=True):
            assert second.at(None, 0) == expected
            second.observe(reward)


@pytest.mark.parametrize("ptx", [0.0, 0.3])
def test_the_loss_has_the_temperature_of_each_step(model, ptx):
    """A batch that tells its temperature is trained as one of settings with that temperature."""
    graph, weights = nnx.split(model)
    rng = np.random.default_rng(0)
    shape = (2, 12)
    batch = {name: jnp.array(rng.integers(1, 80, shape), jnp.int32) for name in ("tokens", "targets")}
    batch |= {"positions": jnp.tile(jnp.arange(12), (2, 1)), "segment_ids": jnp.ones(shape, jnp.int32)}
    floats = ("mask", "weights", "old_logprobs", "advantages", "rewards")
    batch |= {name: jnp.array(rng.normal(size=shape), jnp.float32) for name in floats}
    batch |= {"mask": jnp.ones(shape), "weights": jnp.full(shape, 1 / 24)}
    if ptx:
        batch["ptx"] = jnp.zeros(shape).at[1].set(1 / 12)

    def value(heat, **more):
        settings = RL(sampling=Sampling(temperature=heat), objective=Objective(ptx_weight=ptx))
        loss = make_loss(graph, settings)
        return jax.jit(lambda w: loss(w, batch | more, 24.0)[0])(weights)

    told = value(1.0, temperature=jnp.full(shape, 0.7))
    assert told == pytest.approx(float(value(0.7)), rel=1e-6)
    assert abs(told - value(1.0)) > 1e-4
