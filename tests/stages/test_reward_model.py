"""The reward model's stage: its loss through the decoder, what it learns, and that it goes on where it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from posttrain_jax.data import pipeline
from posttrain_jax.data.packing import FirstFit
from posttrain_jax.data.pairs import PAIRS, Tokens, lay_pairs
from posttrain_jax.models import minimax_m2
from posttrain_jax.models.decoder import Decoder
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.run.recipe import Pace, RewardModel
from posttrain_jax.stages import reward_model
from posttrain_jax.stages.critic import split_critic, with_critic
from posttrain_jax.stages.optimizing import make_optimizing
from posttrain_jax.stages.step import fresh_state

ARCH = dataclasses.replace(
    minimax_m2.TINY, layers=1, vocab=32, hidden=32, heads=2, kv_heads=1, head_dim=16, rotary_dim=8, experts=4,
    experts_per_token=2, expert_ffn=16, max_length=64,
)  # fmt: skip
MESH = make_mesh(devices=jax.devices()[:1])
WANTED = 7  # the token whose presence makes an answer the better one
SETTINGS = RewardModel(steps=60, rows=4, microbatch_rows=2, length=64, heldout=64, centring=0.01)


class Numbers:
    """A chat whose messages are their own tokens."""

    def encode(self, messages, tools=None, add_generation_prompt=False):
        tokens = [token for message in messages for token in message["content"]]
        return tokens, [int(message["role"] == "assistant") for message in messages for _ in message["content"]]


class Toy:
    """Random prompts and answers; the chosen one, and only that, has the wanted token somewhere."""

    def __init__(self, seed, count=4000):
        self.seed, self.count = seed, count

    def __len__(self):
        return self.count

    def where(self, index):
        return f"toy {index}"

    def __getitem__(self, index):
        draw = np.random.default_rng([self.seed, index])
        prompt, chosen, rejected = (draw.integers(WANTED + 1, ARCH.vocab, draw.integers(3, 8)) for _ in range(3))
        chosen[draw.integers(len(chosen))] = WANTED
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        return {name: [{"role": role, "content": texts[name].tolist()}] for name, role in roles.items()}


def batches(state=None, settings=SETTINGS):
    return pipeline.batches(
        Toy(0), Numbers(), rows=settings.rows, length=settings.length, seed=0, on_too_long="error", state=state,
        kind=PAIRS, section="reward_model",
    )  # fmt: skip


@pytest.fixture(scope="module")
def split():
    return nnx.split(Decoder(ARCH, rngs=nnx.Rngs(0)))


def headed(weights, seed=0):
    """With a head that reads something, which a fresh one does not."""
    weights = with_critic(weights)
    flat = dict(weights.flat_state())
    flat["critic", "weight"] = flat["critic", "weight"].replace(0.3 * jax.random.normal(jax.random.key(seed), (32,)))
    return nnx.State.from_flat_path(flat.items())


def test_the_loss_of_packed_pairs_is_that_of_each_conversation_alone(split):
    """Value and the head's gradient against PyTorch, from hidden states of every conversation by itself."""
    graph, weights = split
    weights = headed(weights)
    batch = next(batches())
    assert (batch["segment_ids"].max(axis=1) > 4).any()
    total = batch["mask"].sum()
    loss = reward_model.make_loss(graph, centring=0.1)
    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights, batch, total)

    model = nnx.merge(graph, split_critic(weights)[0])
    hidden = {}
    for row, ids in enumerate(batch["segment_ids"]):
        for segment in range(1, ids.max() + 1):
            own = batch["tokens"][row, ids == segment]
            hidden[row, segment] = np.array(model.hidden(own[None]))[0, -1]
    better = torch.tensor(np.stack([h for (_, s), h in hidden.items() if s % 2]))
    worse = torch.tensor(np.stack([h for (_, s), h in hidden.items() if not s % 2]))
    assert len(better) == total
    head = torch.tensor(np.array(weights["critic"]["weight"].get_value()), requires_grad=True)
    chosen, rejected = better @ head, worse @ head
    expected = -torch.nn.functional.logsigmoid(chosen - rejected) + 0.1 * (chosen + rejected) ** 2
    expected.mean().backward()
    assert float(value) == pytest.approx(expected.mean().item(), rel=1e-4)
    assert float(metrics["accuracy"]) == pytest.approx((chosen > rejected).float().mean().item())
    assert float(metrics["margin"]) == pytest.approx((chosen - rejected).mean().item(), rel=1e-3, abs=1e-5)
    found = np.asarray(gradient["critic"]["weight"].get_value())
    np.testing.assert_allclose(found, head.grad.numpy(), rtol=1e-3, atol=1e-5)
    assert float(jnp.abs(gradient["embed"].get_value()).max()) > 0


def test_microbatches_of_pairs_add_up_to_the_batch(split):
    graph, weights = split
    weights, batch, loss = headed(weights), next(batches()), reward_model.make_loss(graph, centring=0.1)
    total = batch["mask"].sum()
    whole, told = loss(weights, batch, total)
    halves = [loss(weights, {n: x[part] for n, x in batch.items()}, total) for part in (slice(0, 2), slice(2, 4))]
    assert float(whole) == pytest.approx(sum(float(value) for value, _ in halves), rel=1e-5)
    assert float(told["margin"]) == pytest.approx(sum(float(m["margin"]) for _, m in halves), rel=1e-4, abs=1e-6)


def begin(weights, settings=SETTINGS):
    pace = Pace(learning_rate=5e-3, warmup_steps=2, weight_decay=0.0)
    optimizing = make_optimizing(pace, settings.steps, ARCH)
    policy = jax.tree.map(jnp.copy, weights)
    return optimizing, fresh_state(with_critic(policy), optimizing.optimizer, MESH, policy)


@pytest.fixture(scope="module")
def trained(split):
    graph, weights = split
    optimizing, state = begin(weights)
    steps = []
    for step in reward_model.train(SETTINGS, optimizing, graph, state, batches(), MESH, 0):
        steps.append(jax.device_get(step.metrics))
        state = step.state
    return steps, state


def test_it_learns_what_separates_the_pairs_and_leaves_the_policy_alone(split, trained):
    graph, weights = split
    steps, state = trained
    assert steps[0]["loss"] == pytest.approx(np.log(2), rel=1e-5), "a fresh head scores everything alike"
    scorer = reward_model.Scorer(graph, 4, 64, MESH)
    unseen = reward_model.heldout(Toy(1), Numbers(), SETTINGS)
    assert len(unseen) == 64
    assert reward_model.accuracy(scorer, with_critic(weights), unseen) == 0.5
    assert reward_model.accuracy(scorer, state.weights, unseen) > 0.9
    for kept, before in zip(jax.tree.leaves(state.reference), jax.tree.leaves(weights), strict=True):
        assert np.array_equal(kept, before)


def test_a_stage_that_goes_on_ends_with_the_same_bits(split, trained):
    graph, weights = split
    settings = dataclasses.replace(SETTINGS, steps=6)

    def run(state, stream, start, optimizing):
        return list(reward_model.train(settings, optimizing, graph, state, stream, MESH, start))

    optimizing, state = begin(weights, settings)
    whole = run(state, batches(), 0, optimizing)
    optimizing, state = begin(weights, settings)
    early = reward_model.train(settings, optimizing, graph, state, batches(), MESH, 0)
    third = [next(early) for _ in range(3)][-1]
    saved = jax.tree.map(np.asarray, third.state)
    rest = run(jax.tree.map(jnp.asarray, saved), batches(third.cursor["data"]), 3, optimizing)
    assert [step.number for step in rest] == [4, 5, 6]
    for one, other in zip(whole[3:], rest, strict=True):
        assert jax.device_get(one.metrics) == jax.device_get(other.metrics)
        assert one.cursor == other.cursor
    for a, b in zip(jax.tree.leaves(whole[-1].state), jax.tree.leaves(rest[-1].state), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_scores_do_not_depend_on_what_shares_a_row(split):
    graph, weights = split
    weights = headed(weights)
    draw = np.random.default_rng(0)
    sequences = [draw.integers(0, ARCH.vocab, n).tolist() for n in (5, 40, 23, 64, 9, 30, 30)]
    together = reward_model.Scorer(graph, 2, 64, MESH)(weights, sequences)
    model, score = nnx.merge(graph, split_critic(weights)[0]), split_critic(weights)[1]
    alone = [float(score(model.hidden(np.array([sequence])))[0, -1]) for sequence in sequences]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert len(set(together)) == len(sequences)


def test_a_row_takes_no_more_pairs_than_their_sums_have_room_for():
    one = Tokens([1, 2], [1, 3], [0, 1], [0, 1])
    fit = FirstFit(64, 2, PAIRS.most(64))
    places = [fit.place(PAIRS.size(one)) for _ in range(9)]
    assert [place.row for place in places[:8]] == [0] * 4 + [1] * 4 and places[8] is None
    batch = lay_pairs([(place, one) for place in places[:8]], rows=2, length=64)
    assert batch["mask"].sum() == 8 and batch["segment_ids"].max() == 8
