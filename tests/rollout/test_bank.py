"""Requests one by one: what each samples is its own affair, and what caches hold already is not computed again."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.models import glm_4_6, kimi_k2, minimax_m1
from posttrain_jax.models.decoder import Decoder
from posttrain_jax.rollout.bank import Bank
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Request

LIMITS = Limits(
    slots=4,
    max_prompt=12,
    max_response=20,
    decode_chunk=3,
    prefill_batch=4,
    stop_tokens=(3,),
    read_chunk=8,
    routing=True,
)
SMALL = dict(layers=2, vocab=64, hidden=32, expert_ffn=16, experts=8, experts_per_token=2, heads=4, max_length=64)
DENSE = dict(dense_layers=1, dense_ffn=24)
GROUPED = dict(kv_heads=2, head_dim=16, rotary_dim=8)
FAMILIES = {
    "grouped": dataclasses.replace(glm_4_6.TINY, mtp_layers=0, **SMALL, **DENSE, **GROUPED),
    "latent": dataclasses.replace(kimi_k2.TINY, **SMALL, **DENSE, kv_heads=4),
    "lightning": dataclasses.replace(minimax_m1.TINY, pattern=("lightning", "full"), **SMALL, **GROUPED),
    "drafting": dataclasses.replace(glm_4_6.TINY, mtp_layers=1, **SMALL, **DENSE, **GROUPED),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, make_model):
    """(engine, its weights, the model unscanned)."""
    arch = FAMILIES[request.param]
    model = make_model(arch)
    engine = Engine(arch, dataclasses.replace(LIMITS, draft=arch.mtp_layers > 0))
    weights = engine.load(nnx.state(model))
    graph = nnx.split(nnx.eval_shape(lambda: Decoder(arch, rngs=nnx.Rngs(0), scan=False)))[0]
    return engine, weights, nnx.merge(graph, weights)


@pytest.fixture(scope="module")
def forward():
    """``forward(model, sequence)``: log-probabilities and experts chosen, by one pass over all tokens, padded."""

    @nnx.jit
    def run(model, tokens):
        trunk, chosen = model.watched_trunk(tokens, None, None, lambda seen: seen.routing and seen.routing.chosen)
        return jax.nn.log_softmax(model.logits(model.normed(trunk))), chosen

    def padded(model, sequence):
        tokens = np.zeros((1, LIMITS.positions), int)
        tokens[0, : len(sequence)] = sequence
        logprobs, chosen = run(model, tokens)
        none = np.full((len(sequence), model.arch.experts_per_token), -1)
        chosen = [none if layer is None else layer[0, : len(sequence)] for layer in chosen]
        return np.asarray(logprobs)[0, : len(sequence)], np.stack(chosen, 1)

    return padded


def serve(bank, requests, together=None):
    """Completions in the order of the requests, of which so many wait or sit at a time."""
    todo, done = dict(enumerate(requests)), {}
    while todo or bank.busy:
        while todo and bank.load < (together or len(requests)):
            ticket = next(iter(todo))
            bank.submit(ticket, todo.pop(ticket))
        done.update(bank.poll())
    return [done[ticket] for ticket in range(len(requests))]


def prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 64, length).tolist() for length in lengths]


def checked(model, forward, request, completion):
    """What it reports is what a pass over the whole sequence says, up to the order of sums."""
    length, sequence = len(request.prompt), [*request.prompt, *completion.tokens.tolist()]
    logprobs, chosen = forward(model, sequence)
    expected = logprobs[np.arange(length - 1, len(sequence) - 1), completion.tokens]
    np.testing.assert_allclose(completion.logprobs, expected, atol=2e-5)
    if completion.routing is not None:
        np.testing.assert_array_equal(completion.routing[:-1], chosen[:-1])


def test_a_request_answers_the_same_to_the_bit_whatever_is_beside_it(family):
    """Other lengths, temperatures and limits; long prompts too, in another order, few or many at a time."""
    engine, weights, _ = family
    asked = [
        Request(prompt, seed=100 + i, max_tokens=4 + i % 9, temperature=(0.0, 1.0, 0.6)[i % 3])
        for i, prompt in enumerate(prompts(3, 12, 17, 1, 9, 23, 12, 5, 14))
    ]
    key = jax.random.key(1)
    alone = partial(Bank, engine, weights, key, reuse=False)
    crowd = serve(alone(), asked)
    for other, order in (
        (serve(alone(), asked[::-1], 3), slice(None, None, -1)),
        (serve(alone(), asked, 1), slice(None)),
    ):
        for one, two, request in zip(crowd, other[order], asked, strict=True):
            assert one.tokens.tolist() == two.tokens.tolist() and one.finish == two.finish
            assert one.logprobs.tobytes() == two.logprobs.tobytes()
            assert len(one.tokens) == request.max_tokens if one.finish == "length" else one.tokens[-1] == 3
    assert "length" in {completion.finish for completion in crowd}


def test_a_conversation_costs_its_new_tokens(family, forward):
    """Three turns in each of three conversations, mixed; with and without reuse the same is sampled and reported."""
    engine, weights, model = family
    banks = [Bank(engine, weights, jax.random.key(2), reuse=reuse) for reuse in (True, False)]
    histories = prompts(5, 3, 8, seed=4)
    for turn in range(3):
        asked = [Request(h, seed=10 * turn + i, max_tokens=3, routing=True) for i, h in enumerate(histories)]
        again, anew = (serve(bank, asked) for bank in banks)
        for i, (one, other) in enumerate(zip(again, anew, strict=True)):
            assert one.tokens.tolist() == other.tokens.tolist()
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)
            checked(model, forward, asked[i], one)
            histories[i] = [*histories[i], *one.tokens.tolist(), *prompts(4, seed=turn + i)[0]]
    reused, anew = (bank.account for bank in banks)
    assert anew.reused == 0 and reused.read + reused.reused == anew.read
    per_turn = 4 if engine.limits.draft is False else 4 + 3
    assert reused.read <= 5 + 3 + 8 + 2 * 3 * per_turn


def test_a_long_prompt_is_read_once_for_its_group(family, forward):
    """Longer than ``max_prompt``, asked for more often than there are slots."""
    engine, weights, model = family
    bank = Bank(engine, weights, jax.random.key(3))
    (prompt,) = prompts(21, seed=5)
    asked = [Request(prompt, seed=i, max_tokens=8, routing=True) for i in range(3)]
    answers = serve(bank, asked)
    assert bank.account.read == 21 and bank.account.reused == 2 * 21
    alone = [serve(Bank(engine, weights, jax.random.key(3), reuse=False), [one])[0] for one in asked]
    for request, completion, other in zip(asked, answers, alone, strict=True):
        checked(model, forward, request, completion)
        assert completion.logprobs.tobytes() == other.logprobs.tobytes()
    assert len({tuple(c.tokens) for c in answers}) > 1


def test_new_weights_take_over_between_chunks(family, make_model):
    """Every token tells whose it is; what old weights computed is used by nobody else."""
    engine, weights, model = family
    other = jax.tree.map(lambda x: x * 1.1, weights)
    bank = Bank(engine, weights, jax.random.key(4), version=7)
    (prompt,) = prompts(9, seed=6)
    bank.submit(0, Request(prompt, seed=2, max_tokens=20, temperature=1.5))
    assert bank.poll() == []
    early, _ = bank.so_far()[0]
    bank.update_weights(other, 8)
    bank.submit(1, Request([*prompt, 5], seed=1, max_tokens=4))
    done = {}
    while bank.busy:
        done.update(bank.poll())
    assert bank.account.reused == 0
    assert done[0].versions.tolist() == [7] * len(early) + [8] * (len(done[0].tokens) - len(early))
    assert done[0].tokens[: len(early)].tolist() == early.tolist()
    assert set(done[1].versions) == {8}
    fresh = Bank(engine, other, jax.random.key(4), version=8)
    (expected,) = serve(fresh, [Request([*prompt, 5], seed=1, max_tokens=4)])
    assert done[1].logprobs.tobytes() == expected.logprobs.tobytes()


def test_who_is_cancelled_makes_room(family):
    engine, weights, _ = family
    bank = Bank(engine, weights, jax.random.key(5))
    asked = [Request(p, seed=i, max_tokens=20) for i, p in enumerate(prompts(*[6] * 6, seed=7))]
    for ticket, request in enumerate(asked):
        bank.submit(ticket, request)
    bank.poll()
    for ticket in (0, 1, 2, 5):
        bank.cancel(ticket)
    done = {}
    while bank.busy:
        done.update(bank.poll())
    assert set(done) == {3, 4}
    (expected,) = serve(Bank(engine, weights, jax.random.key(5)), [asked[4]])
    assert done[4].logprobs.tobytes() == expected.logprobs.tobytes()


def test_nothing_compiles_again(family):
    engine, weights, _ = family
    serve(Bank(engine, weights, jax.random.key(6)), [Request(p, 0, 3) for p in prompts(3, 20)])
    programs = engine._admit, engine._read, engine._decode, engine._keys
    compiled = [program._cache_size() for program in programs]
    serve(Bank(engine, weights, jax.random.key(7)), [Request(p, 0, 3, 0.5) for p in prompts(*range(1, 28))])
    assert [program._cache_size() for program in programs] == compiled == [1] * 4


def test_what_cannot_be_served_is_said(family):
    engine, weights, _ = family
    bank = Bank(engine, weights, jax.random.key(0))
    for request, message in (
        (Request([], 0, 1), "0 tokens; the engine takes 1 to 31"),
        (Request([1] * 32, 0, 1), "32 tokens; the engine takes 1 to 31"),
        (Request([1], -1, 1), "32 bits"),
        (Request([1], 0, 0), "max_tokens=0"),
        (Request([1], 0, 1, -0.5), "temperature=-0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            bank.submit(0, request)
    assert not bank.busy and bank.poll() == []
    (last,) = serve(bank, [Request([1] * 31, 0, 9)])
    assert len(last.tokens) == 1
