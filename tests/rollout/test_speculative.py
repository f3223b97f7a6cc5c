"""Drafts change the speed of decoding and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.models import glm_4_6, kimi_k2
from posttrain_jax.models.architecture import LIGHTNING
from posttrain_jax.models.decoder import Decoder
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.sampling import distribution, draw
from posttrain_jax.rollout.speculative import accepted, leftover

ARCH = dataclasses.replace(
    glm_4_6.TINY, layers=2, dense_layers=1, vocab=8, hidden=32, expert_ffn=16, experts=4, dense_ffn=24
)
LIMITS = Limits(slots=3, max_prompt=6, max_response=9, decode_chunk=4, prefill_batch=2, stop_tokens=(7,), draft=True)
PROMPTS = [[1], [2, 3], [4, 5, 6, 1, 2], [3, 3, 3, 3, 3, 3]]


@pytest.fixture(scope="module")
def weights():
    """Random, and far enough from even that drafts are refused as well as kept."""
    state = nnx.state(Decoder(ARCH, rngs=nnx.Rngs(0)))
    state["head"] = state["head"].replace(state["head"].get_value() * 3)
    return state


@pytest.fixture(scope="module")
def engines(weights):
    """(an engine that drafts, one that does not), and their weights."""
    pair = [Engine(ARCH, dataclasses.replace(LIMITS, draft=draft)) for draft in (True, False)]
    return *pair, pair[0].load(weights)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
def test_what_comes_out_is_distributed_as_p(sharpness):
    """Over every draft and a grid of chances: q · kept + what is left over = p."""
    p, q = jax.nn.softmax(sharpness * jax.random.normal(jax.random.key(1), (2, 1, 6)), axis=-1)
    chances = (jnp.arange(4000) + 0.5) / 4000
    wide = lambda x: jnp.broadcast_to(x, (len(chances), x.shape[-1]))  # noqa: E731
    kept = jnp.stack([accepted(wide(p), wide(q), jnp.full(4000, d), chances).mean() for d in range(6)])
    left = leftover(p, q)[0]
    out = q[0] * kept + (1 - (q[0] * kept).sum()) * left / left.sum()
    np.testing.assert_allclose(out, p[0], atol=1e-3)


def test_equal_distributions_keep_every_draft_and_certain_ones_only_the_same():
    p = jax.nn.softmax(jax.random.normal(jax.random.key(0), (1, 5)))
    assert all(bool(accepted(p, p, jnp.array([d]), jnp.array([0.999999]))[0]) for d in range(5))
    np.testing.assert_array_equal(leftover(p, p), p)
    one, two = jnp.eye(5)[:1], jnp.eye(5)[1:2]
    assert bool(accepted(one, one, jnp.array([0]), jnp.array([0.9999]))[0])
    assert not bool(accepted(one, two, jnp.array([1]), jnp.array([0.0]))[0])
    np.testing.assert_array_equal(leftover(one, two), one)


@pytest.mark.parametrize("cut", [{"top_p": 1.0, "top_k": 0}, {"top_p": 0.7, "top_k": 0}, {"top_p": 1.0, "top_k": 2}])
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_the_distribution_is_what_draw_draws_from(cut, temperature):
    logits = 2 * jax.random.normal(jax.random.key(3), (1, 7))
    mass, logprobs = distribution(logits, temperature=temperature, **cut)
    chances = (jnp.arange(5000) + 0.5) / 5000
    tokens, reported = draw(jnp.broadcast_to(logits, (5000, 7)), chances, temperature=temperature, **cut)
    np.testing.assert_allclose(np.bincount(tokens, minlength=7) / 5000, mass[0], atol=4e-4)
    np.testing.assert_allclose(reported, logprobs[0, tokens], atol=1e-5)


def test_greedy_answers_are_those_without_drafts(engines):
    drafting, plain, weights = engines
    ours = drafting.generate(weights, PROMPTS, jax.random.key(0), temperature=0.0)
    theirs = plain.generate(weights, PROMPTS, jax.random.key(0), temperature=0.0)
    for (a,), (b,) in zip(ours, theirs, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist() and a.finish == b.finish
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-5)
    assert sum(a.drafted for (a,) in ours) > 0 and all(b.drafted == 0 for (b,) in theirs)


def exact(weights, prompt, length):
    """Probability of every answer of up to ``length`` tokens, by the forward pass over all of them."""
    model = nnx.merge(nnx.split(nnx.eval_shape(lambda: Decoder(ARCH, rngs=nnx.Rngs(0))))[0], weights)
    answers = np.stack(np.meshgrid(*[np.arange(ARCH.vocab)] * length, indexing="ij"), -1).reshape(-1, length)
    tokens = np.concatenate([np.tile(prompt, (len(answers), 1)), answers], axis=1)
    logprobs = jax.nn.log_softmax(nnx.jit(lambda m, t: m(t))(model, tokens))
    steps = np.take_along_axis(np.asarray(logprobs)[:, len(prompt) - 1 : -1], answers[..., None], axis=2)[..., 0]
    chances: dict[tuple, float] = {}
    for answer, step in zip(answers.tolist(), steps, strict=True):
        end = answer.index(7) + 1 if 7 in answer else length
        chances[tuple(answer[:end])] = float(np.exp(step[:end].sum()))
    return chances


@pytest.mark.parametrize("prompt", [[2, 3], pytest.param([1], marks=pytest.mark.slow)])
def test_sampled_answers_have_the_model_s_probabilities(weights, prompt):
    """Pearson's test over all answers of three tokens: some begin with drafts kept, some with drafts refused."""
    limits = dataclasses.replace(LIMITS, slots=512, max_response=3)
    engine = Engine(ARCH, limits)
    count = 20_000
    (answers,) = engine.generate(engine.load(weights), [prompt], jax.random.key(5), samples=count)
    assert 0.05 < sum(a.kept for a in answers) / sum(a.drafted for a in answers) < 0.95
    chances = exact(weights, prompt, 3)
    assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
    found: dict[tuple, int] = {}
    for answer in answers:
        found[tuple(answer.tokens.tolist())] = found.get(tuple(answer.tokens.tolist()), 0) + 1
    common = [answer for answer, chance in chances.items() if chance * count >= 5]
    expected = np.array([chances[answer] * count for answer in common])
    seen = np.array([found.get(answer, 0) for answer in common])
    rest = max(count - expected.sum(), 5.0), count - seen.sum()
    statistic = ((seen - expected) ** 2 / expected).sum() + (rest[1] - rest[0]) ** 2 / rest[0]
    freedom = len(common)
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5, (statistic, freedom)
    for answer in answers[:200]:
        whole = chances[tuple(answer.tokens.tolist())]
        assert float(np.exp(answer.logprobs.sum())) == pytest.approx(whole, rel=1e-3)


def test_a_sequence_does_not_depend_on_its_neighbours(engines):
    drafting, _, weights = engines
    together = drafting.generate(weights, PROMPTS, jax.random.key(9), samples=3)
    crowd = dataclasses.replace(LIMITS, slots=5, decode_chunk=2, prefill_batch=1)
    again = Engine(ARCH, crowd, banks=2).generate(weights, PROMPTS, jax.random.key(9), samples=3)
    for first, second in zip(together, again, strict=True):
        assert [a.tokens.tolist() for a in first] == [b.tokens.tolist() for b in second]


def test_answers_end_where_they_should(engines):
    drafting, _, weights = engines
    for completions in drafting.generate(weights, PROMPTS, jax.random.key(2), samples=40):
        for c in completions:
            assert 1 <= len(c.tokens) <= 9 and 7 not in c.tokens[:-1]
            assert (c.finish == "stop") == (c.tokens[-1] == 7)
            assert c.finish == "stop" or len(c.tokens) == 9
            assert c.kept <= c.drafted <= len(c.tokens)
            assert len(c.logprobs) == len(c.tokens) and (c.logprobs <= 0).all()


def test_streaming_is_the_same(engines):
    drafting, _, weights = engines
    ((whole,),) = drafting.generate(weights, PROMPTS[2:3], jax.random.key(4))
    parts = list(drafting.stream(weights, PROMPTS[2], jax.random.key(4)))
    assert np.concatenate([tokens for tokens, _ in parts]).tolist() == whole.tokens.tolist()
    assert parts[-1][1] == whole.finish


def test_models_that_cannot_draft_are_refused():
    with pytest.raises(ValueError, match="this model has none"):
        Engine(kimi_k2.TINY, LIMITS)
    with pytest.raises(ValueError, match="lightning attention keeps a state"):
        Engine(dataclasses.replace(ARCH, pattern=(LIGHTNING,)), LIMITS)
