"""Generation with a cache, in slots, many at a time, against the plain forward pass of one sequence."""

import dataclasses
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import token_logprobs
from posttrain_jax.models.decoder import abstract
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Request

MAX_PROMPT, MAX_RESPONSE = 12, 14
LENGTHS = (3, 12, 1, 7, 5, 11, 2, 9, 4)


@pytest.fixture(scope="module")
def prompts(arch):
    rng = np.random.default_rng(0)
    return [rng.integers(0, arch.vocab, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def full(model):
    """``full(sequence) -> [length, hidden]`` by the training forward pass, at one padded length."""
    forward = nnx.jit(lambda model, tokens: model.hidden(tokens))

    def run(sequence):
        padded = np.zeros((1, MAX_PROMPT + MAX_RESPONSE), int)
        padded[0, : len(sequence)] = sequence
        return forward(model, padded)[0, : len(sequence)]

    return run


@pytest.fixture(scope="module")
def greedy(prompts, full, model):
    """What argmax over the full forward pass says, token by token, without any stop."""
    head = np.asarray(model.head[...])
    responses = []
    for prompt in prompts:
        sequence = list(prompt)
        for _ in range(MAX_RESPONSE):
            sequence.append(int((np.asarray(full(sequence)[-1]) @ head).argmax()))
        responses.append(sequence[len(prompt) :])
    return responses


@pytest.fixture(scope="module")
def limits(greedy):
    """More prompts than slots, more slots than a prefill holds, chunks that divide nothing; a stop that is reached."""
    return Limits(
        slots=4,
        max_prompt=MAX_PROMPT,
        max_response=MAX_RESPONSE,
        decode_chunk=5,
        prefill_batch=2,
        stop_tokens=(greedy[0][3], greedy[3][8]),
    )


@pytest.fixture(scope="module")
def engine(arch, limits):
    return Engine(arch, limits)


@pytest.fixture(scope="module")
def weights(engine, model):
    return engine.load(nnx.state(model))


def until_stop(tokens, stop_tokens):
    for n, token in enumerate(tokens, 1):
        if token in stop_tokens:
            return list(tokens[:n]), "stop"
    return list(tokens), "length"


def same(first, second):
    """Two completions of one sequence: the same tokens; log-probabilities may differ by the order of sums."""
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_allclose(first.logprobs, second.logprobs, atol=1e-5)
    assert first.finish == second.finish


def test_greedy_is_the_argmax_of_the_full_forward(engine, weights, prompts, greedy):
    """Nine prompts of all lengths through four slots: a reused slot remembers nothing."""
    found = engine.generate(weights, prompts, jax.random.key(0), temperature=0.0)
    finishes = set()
    for (completion,), expected in zip(found, greedy, strict=True):
        tokens, finish = until_stop(expected, engine.limits.stop_tokens)
        assert completion.tokens.tolist() == tokens and completion.finish == finish
        finishes.add(finish)
    assert finishes == {"stop", "length"}


def test_many_at_a_time_are_as_one_at_a_time(engine, weights, prompts):
    crowd = engine.generate(weights, prompts, jax.random.key(0), temperature=0.0)
    for prompt, (completion,) in zip(prompts, crowd, strict=True):
        same(engine.generate(weights, [prompt], jax.random.key(5), temperature=0.0)[0][0], completion)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reported_log_probabilities_are_the_trainers(engine, weights, prompts, full, model, temperature):
    found = engine.generate(weights, prompts, jax.random.key(1), samples=2, temperature=temperature)
    assert [len(completions) for completions in found] == [2] * len(prompts)
    for prompt, completions in zip(prompts, found, strict=True):
        for completion in completions:
            sequence = [*prompt, *completion.tokens.tolist()]
            hidden, targets = full(sequence)[None, len(prompt) - 1 : -1], completion.tokens[None]
            expected, _ = token_logprobs(hidden, model.head[...], targets, temperature=temperature)
            np.testing.assert_allclose(completion.logprobs, expected[0], atol=1e-5)
            assert 1 <= len(completion.tokens) == len(completion.logprobs) <= MAX_RESPONSE


def test_what_a_sequence_samples_does_not_depend_on_its_neighbours(engine, weights, prompts):
    """Sequence i draws from fold_in(key, i), whatever its slot, its companions and when it was admitted."""
    key = jax.random.key(2)
    crowd = engine.generate(weights, prompts, key)
    same(engine.generate(weights, prompts[:1], key)[0][0], crowd[0][0])
    others = [*reversed(prompts[:5]), prompts[5]]
    same(engine.generate(weights, others, key)[5][0], crowd[5][0])


def test_samples_share_a_prefill_but_not_their_draws(engine, weights, prompts):
    key = jax.random.key(3)
    together = engine.generate(weights, [prompts[4]], key, samples=6)[0]
    assert len({tuple(completion.tokens) for completion in together}) > 3
    for (apart,), completion in zip(engine.generate(weights, [prompts[4]] * 6, key), together, strict=True):
        same(apart, completion)


def test_one_key_one_answer_and_another_key_another(engine, weights, prompts):
    first, again, other = (engine.generate(weights, prompts[:4], jax.random.key(seed)) for seed in (4, 4, 5))
    for (a,), (b,) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.logprobs, b.logprobs)
    assert any(a.tokens.tolist() != b.tokens.tolist() for (a,), (b,) in zip(first, other, strict=True))


@pytest.mark.parametrize("banks", [2, 3])
def test_banks_change_when_a_sequence_is_decoded_but_not_what_it_says(arch, limits, engine, weights, prompts, banks):
    key = jax.random.key(8)
    several = Engine(arch, dataclasses.replace(limits, slots=2), banks=banks)
    found = several.generate(weights, prompts, key, samples=2)
    compiled = programs(several)
    again = several.generate(weights, prompts, key, samples=2)
    expected = engine.generate(weights, prompts, key, samples=2)
    for ours, bits, theirs in zip(chain(*found), chain(*again), chain(*expected), strict=True):
        same(ours, theirs)
        assert ours.logprobs.tobytes() == bits.logprobs.tobytes()
    assert programs(several) == compiled and max(compiled) == 1
    assert several.generate(weights, [], key) == []
    same(several.generate(weights, prompts[:1], key)[0][0], engine.generate(weights, prompts[:1], key)[0][0])


def test_an_error_in_one_bank_ends_the_others(arch, limits, weights, prompts):
    several = Engine(arch, dataclasses.replace(limits, slots=2), banks=2)
    seat = several._seat

    def refuse(waiting, *rest):
        if waiting and max(waiting) > 5:
            raise RuntimeError("a broken bank")
        return seat(waiting, *rest)

    several._seat = refuse
    with pytest.raises(RuntimeError, match="a broken bank"):
        several.generate(weights, prompts, jax.random.key(0))


def test_finish_reasons_fit_the_tokens(engine, weights, prompts):
    seen = set()
    for completions in engine.generate(weights, prompts, jax.random.key(6), samples=8):
        for completion in completions:
            stops = np.isin(completion.tokens, engine.limits.stop_tokens)
            assert not stops[:-1].any()
            assert completion.finish == ("stop" if stops[-1] else "length")
            assert stops[-1] or len(completion.tokens) == MAX_RESPONSE
            seen.add(completion.finish)
    assert seen == {"stop", "length"}


def test_stream_gives_the_tokens_of_generate_in_chunks(engine, weights, prompts):
    key = jax.random.key(7)
    for prompt, temperature in ((prompts[1], 1.0), (prompts[0], 0.0)):
        expected = engine.generate(weights, [prompt], key, temperature=temperature)[0][0]
        pieces = list(engine.stream(weights, prompt, key, temperature=temperature))
        assert np.concatenate([tokens for tokens, _ in pieces]).tolist() == expected.tokens.tolist()
        assert [finish for _, finish in pieces] == [None] * (len(pieces) - 1) + [expected.finish]
        assert all(1 <= len(tokens) <= engine.limits.decode_chunk for tokens, _ in pieces)


def programs(engine):
    """How many versions of each compiled function there are."""
    of_engine = (engine._load, engine._admit, engine._decode, engine._empty, engine._keys)
    return [program._cache_size() for program in of_engine]


def test_nothing_compiles_again_whatever_is_asked(arch, limits, model, prompts):
    engine = Engine(arch, limits)
    weights = engine.load(nnx.state(model))
    engine.generate(weights, prompts[:1], jax.random.key(0))
    compiled = programs(engine)
    engine.generate(weights, prompts, jax.random.key(1), samples=3, temperature=0.3)
    engine.generate(weights, [[1]], jax.random.key(2), temperature=0.0)
    list(engine.stream(weights, prompts[2], jax.random.key(3)))
    engine.generate(engine.load(nnx.state(model)), prompts[3:8], jax.random.key(4))
    assert programs(engine) == compiled == [1] * 5


def test_weights_that_lie_on_a_mesh_generate_the_same_without_compiling_again(arch, limits, model, prompts):
    engine = Engine(arch, limits)
    layout = abstract(lambda: model, meshes.make_mesh(fsdp=4, tensor=2))[1]
    weights = engine.load(jax.device_put(nnx.state(model), jax.tree.map(lambda leaf: leaf.sharding, layout)))
    found = engine.generate(weights, prompts, jax.random.key(0), temperature=0.0)
    compiled = programs(engine)
    engine.generate(weights, prompts[:3], jax.random.key(1))
    assert programs(engine) == compiled
    alone = engine.generate(engine.load(nnx.state(model)), prompts, jax.random.key(0), temperature=0.0)
    for (a,), (b,) in zip(found, alone, strict=True):
        same(a, b)


def test_a_sure_streak_ends_a_response(arch, limits, model, prompts):
    """MiniMax-M1 section 3.3: so many tokens in a row above a probability. Here two above .05, with no stop token."""
    limits = dataclasses.replace(limits, stop_tokens=(), repetition_window=2, repetition_probability=0.05)
    engine = Engine(arch, limits)
    ended = {"repetition": 0, "length": 0}
    for completions in engine.generate(engine.load(nnx.state(model)), prompts, jax.random.key(8), samples=3):
        for completion in completions:
            sure = np.exp(completion.logprobs) > 0.05
            streaks = sure[1:] & sure[:-1]
            assert not streaks[:-1].any()
            repeats = len(streaks) > 0 and bool(streaks[-1])
            assert completion.finish == ("repetition" if repeats else "length")
            assert repeats or len(completion.tokens) == MAX_RESPONSE
            ended[completion.finish] += 1
    assert min(ended.values()) > 0


def test_top_k_of_one_is_greedy_at_any_temperature(arch, limits, model, prompts, engine, weights):
    narrow = Engine(arch, dataclasses.replace(limits, top_k=1, top_p=0.9))
    found = narrow.generate(narrow.load(nnx.state(model)), prompts[:4], jax.random.key(9), temperature=1.5)
    expected = engine.generate(weights, prompts[:4], jax.random.key(9), temperature=0.0)
    for (a,), (b,) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)


def test_the_compute_format_leaves_router_and_head_exact(arch, limits, model):
    state = nnx.state(model)
    loaded = Engine(arch, limits, compute_dtype="bfloat16").load(state)
    assert loaded["head"][...].dtype == loaded["layers"][1]["ffn"]["router"][...].dtype == jnp.float32
    assert loaded["embed"][...].dtype == loaded["layers"][1]["ffn"]["gate"][...].dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded["layers"][1]["ffn"]["router"][...], state["stacks"][0][0]["ffn"]["router"][1])


def test_what_cannot_be_asked_is_said(engine, weights, arch, limits, prompts):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="prompt 1 has 13 tokens; the engine takes 1 to 12"):
        engine.generate(weights, [[1], [1] * 13], key)
    with pytest.raises(ValueError, match="prompt 0 has 0 tokens"):
        engine.generate(weights, [[]], key)
    with pytest.raises(ValueError, match="prompt 0 has 13 tokens"):
        list(engine.stream(weights, [1] * 13, key))
    with pytest.raises(ValueError, match="max_length=20"):
        Engine(dataclasses.replace(arch, max_length=20), limits)
    assert engine.generate(weights, [], key) == []


def test_neighbours_change_no_bit_where_slots_are_long(arch, model):
    """So long that experts take a prefill's rows in blocks, and a prompt could be read in fewer tokens by parts."""
    limits = Limits(slots=4, max_prompt=512, max_response=8, decode_chunk=4, prefill_batch=2, stop_tokens=())
    longer = dataclasses.replace(arch, max_length=limits.positions)
    engine = Engine(longer, limits)
    weights, rng = engine.load(nnx.state(model)), np.random.default_rng(0)
    asked = [Request(rng.integers(4, 80, n).tolist(), n, 8) for n in (5, 300, 17, 9, 60, 33)]
    for request, beside in zip(asked, engine.complete(weights, asked), strict=True):
        (alone,) = engine.complete(weights, [request])
        assert alone.logprobs.tobytes() == beside.logprobs.tobytes()
