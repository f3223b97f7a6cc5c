"""DPO's stage: its loss through the decoder by hand, and the margin that it raises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.data import pipeline
from posttrain_jax.data.pairs import PAIRS
from posttrain_jax.models import minimax_m2
from posttrain_jax.models.decoder import Decoder
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.run.recipe import DPO, Pace
from posttrain_jax.stages import preference
from posttrain_jax.stages.optimizing import make_optimizing
from posttrain_jax.stages.step import fresh_state

ARCH = dataclasses.replace(
    minimax_m2.TINY, layers=1, vocab=32, hidden=32, heads=2, kv_heads=1, head_dim=16, rotary_dim=8, experts=4,
    experts_per_token=2, expert_ffn=16, max_length=64,
)  # fmt: skip
MESH = make_mesh(devices=jax.devices()[:1])


class Numbers:
    """A chat whose messages are their own tokens."""

    def encode(self, messages, tools=None, add_generation_prompt=False):
        tokens = [token for message in messages for token in message["content"]]
        return tokens, [int(message["role"] == "assistant") for message in messages for _ in message["content"]]


def records(count):
    """The chosen answer counts up, the rejected one down."""
    draw, made = np.random.default_rng(0), []
    for _ in range(count):
        prompt, middle, size = draw.integers(1, 32, 4).tolist(), int(draw.integers(10, 20)), int(draw.integers(2, 9))
        answers = {
            "chosen": [middle + i for i in range(size)],
            "rejected": [middle - i for i in range(int(draw.integers(2, 9)))],
        }
        made.append(
            {"prompt": [{"role": "user", "content": prompt}]}
            | {name: [{"role": "assistant", "content": tokens}] for name, tokens in answers.items()}
        )
    return made


def batches(state=None):
    return pipeline.batches(
        records(64), Numbers(), rows=4, length=64, seed=0, on_too_long="error", state=state, kind=PAIRS, section="dpo"
    )


def weights_of(seed):
    return nnx.split(Decoder(ARCH, rngs=nnx.Rngs(seed)))


def by_hand(kind, h, beta, smoothing):
    def log_sigmoid(x):
        return -np.log1p(np.exp(-x))

    return {
        "sigmoid": -(1 - smoothing) * log_sigmoid(beta * h) - smoothing * log_sigmoid(-beta * h),
        "robust": (-(1 - smoothing) * log_sigmoid(beta * h) + smoothing * log_sigmoid(-beta * h)) / (1 - 2 * smoothing),
        "hinge": np.maximum(0, 1 - beta * h),
        "ipo": (h - 1 / (2 * beta)) ** 2,
    }[kind]


@pytest.mark.parametrize(
    "kind, smoothing",
    [
        ("sigmoid", 0.1),
        ("ipo", 0.0),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("sigmoid", 0.0), ("robust", 0.2), ("hinge", 0.0))),
    ],
)
def test_the_loss_is_that_of_every_pair_alone(kind, smoothing):
    graph, weights = weights_of(0)
    _, reference = weights_of(1)
    batch = next(batches())
    look_back = preference.make_look_back(graph, MESH)
    batch = {name: x[0] for name, x in look_back(reference, {name: x[None] for name, x in batch.items()}).items()}

    def logprob(weights, prompt, answer):
        logits = np.asarray(nnx.merge(graph, weights)(np.array([prompt + answer])), np.float64)[0]
        every = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        found = [every[len(prompt) + i - 1, token] for i, token in enumerate(answer)]
        return np.mean(found) if kind == "ipo" else np.sum(found)

    known = {}
    for record in records(64):
        prompt, chosen, rejected = (record[name][0]["content"] for name in ("prompt", "chosen", "rejected"))
        known[tuple(prompt + chosen)] = prompt, chosen, rejected
    h = []
    for row, ids in enumerate(batch["segment_ids"]):
        for segment in range(1, int(ids.max()), 2):
            tokens = tuple(np.asarray(batch["tokens"])[row, np.asarray(ids) == segment].tolist())
            prompt, chosen, rejected = known[tokens]
            gains = [logprob(weights, prompt, a) - logprob(reference, prompt, a) for a in (chosen, rejected)]
            h.append(gains[0] - gains[1])
    assert len(h) == batch["mask"].sum() > 4
    settings = DPO(kind=kind, beta=0.3, label_smoothing=smoothing)
    value, metrics = jax.jit(preference.make_loss(graph, settings))(weights, batch, batch["mask"].sum())
    assert float(value) == pytest.approx(by_hand(kind, np.array(h), 0.3, smoothing).mean(), rel=1e-4)
    assert float(metrics["margin"]) == pytest.approx(0.3 * np.mean(h), rel=1e-3, abs=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(np.array(h) > 0))


def train(settings, optimizing, graph, state, stream, start=0):
    return list(preference.train(settings, optimizing, graph, state, stream, MESH, start))


def test_it_raises_the_margin_and_a_stage_that_goes_on_ends_with_the_same_bits():
    settings = DPO(steps=16, rows=4, microbatch_rows=2, length=64, beta=0.5)
    graph, weights = weights_of(0)
    optimizing = make_optimizing(Pace(learning_rate=3e-3, warmup_steps=1, weight_decay=0.0), 16, ARCH)

    def begin():
        return fresh_state(jax.tree.map(jnp.copy, weights), optimizing.optimizer, MESH, jax.tree.map(jnp.copy, weights))

    whole = train(settings, optimizing, graph, begin(), batches())
    first, last = (jax.device_get(whole[i].metrics) for i in (0, -1))
    assert first["loss"] == pytest.approx(np.log(2), rel=1e-5) and first["margin"] == pytest.approx(0, abs=1e-6)
    assert last["margin"] > 0.5 and last["accuracy"] > 0.9 and last["loss"] < 0.6
    assert last["reward_chosen"] > last["reward_rejected"]

    early = train(dataclasses.replace(settings, steps=5), optimizing, graph, begin(), batches())[-1]
    saved = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), early.state)
    rest = train(settings, optimizing, graph, saved, batches(early.cursor["data"]), start=5)
    for one, other in zip(whole[5:], rest, strict=True):
        assert jax.device_get(one.metrics) == jax.device_get(other.metrics)
    for a, b in zip(jax.tree.leaves(whole[-1].state), jax.tree.leaves(rest[-1].state), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
