"""An engine whose routed experts are INT4, against a float engine with exactly the dequantised weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posttrain_jax import hf
from posttrain_jax.models import glm_4_6, minimax_m2
from posttrain_jax.models.decoder import Decoder
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.quant import int4
from posttrain_jax.rollout.bank import Bank
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Request

LIMITS = Limits(slots=8, max_prompt=12, max_response=12, decode_chunk=4, prefill_batch=4, stop_tokens=(3,))
EXPERTS = ("gate", "up", "down")


@pytest.fixture(scope="module")
def arch(arch):
    return dataclasses.replace(arch, hidden=64, expert_ffn=64, experts=8)


@pytest.fixture(scope="module")
def weights(arch, make_model):
    return nnx.state(make_model(arch))


def routed(path, leaf):
    return leaf.ndim == 4 and any(f"'{name}'" in jax.tree_util.keystr(path) for name in EXPERTS)


def dequantised(weights):
    """The weights with routed experts exactly as INT4 holds them."""

    def cut(path, leaf):
        return int4.quantize_experts(leaf).dequantized(leaf.dtype) if routed(path, leaf) else leaf

    return jax.tree_util.tree_map_with_path(cut, weights)


def asked(count=8):
    rng = np.random.default_rng(0)
    return [Request(rng.integers(4, 64, 2 + n).tolist(), n, 10) for n in range(count)]


def alike(left, right):
    for one, two in zip(left, right, strict=True):
        assert one.tokens.tolist() == two.tokens.tolist()
        np.testing.assert_allclose(one.logprobs, two.logprobs, atol=2e-6)


def complete(arch, weights, limits=LIMITS, **options):
    engine = Engine(arch, limits, **options)
    return engine.complete(engine.load(weights), asked())


def test_it_samples_what_the_dequantised_weights_sample_and_not_what_the_plain_ones_do(arch, weights):
    found = complete(arch, weights, int4=True)
    alike(found, complete(arch, dequantised(weights)))
    plain = complete(arch, weights)
    assert max(abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(found, plain, strict=True)) > 1e-3


def test_experts_take_four_bits_and_a_scale_for_32(arch, weights):
    def bits(tree):
        return sum(
            leaf.size * jnp.finfo(leaf.dtype).bits if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.size * 4
            for leaf in jax.tree.leaves(tree)
        )

    saved = bits(Engine(arch, LIMITS).load(weights)) - bits(Engine(arch, LIMITS, int4=True).load(weights))
    numbers = arch.layers * arch.experts * 3 * arch.hidden * arch.expert_ffn
    assert saved == numbers * (32 - 4.5)


def test_it_lies_on_a_mesh(arch, weights):
    mesh = make_mesh(data=1, fsdp=2, expert=2, tensor=2)
    alike(complete(arch, weights, int4=True, mesh=mesh), complete(arch, dequantised(weights)))


def test_it_drafts(make_model):
    arch = dataclasses.replace(glm_4_6.TINY, layers=2, vocab=64, hidden=64, expert_ffn=32, experts=4, max_length=64)
    weights = nnx.state(make_model(arch))
    limits = dataclasses.replace(LIMITS, draft=True)
    found = complete(arch, weights, limits, int4=True)
    alike(found, complete(arch, _with_draft(weights, arch), limits))
    assert sum(one.drafted for one in found)


def _with_draft(weights, arch):
    """As `dequantised`; the draft layer's experts are not stacked."""

    def cut(path, leaf):
        name = jax.tree_util.keystr(path)
        own = leaf.ndim == 3 and "'mtp'" in name and "'ffn'" in name
        return int4.quantize_experts(leaf).dequantized(leaf.dtype) if own or routed(path, leaf) else leaf

    return jax.tree_util.tree_map_with_path(cut, weights)


def test_a_prefix_is_used_again(arch, weights):
    engine = Engine(arch, dataclasses.replace(LIMITS, read_chunk=4), int4=True)
    said = []
    for reuse in (True, False):
        bank, done = Bank(engine, engine.load(weights), jax.random.key(0), reuse=reuse), {}
        for ticket, prompt in enumerate((range(10, 20), range(10, 22))):
            bank.submit(ticket, Request(tuple(prompt), 0, 4))
            while bank.busy:
                done.update(bank.poll())
        assert bool(bank.account.reused) == reuse
        said.append([done[0], done[1]])
    alike(*said)


@pytest.mark.parametrize("qat, least, most", [("int4", 0, 3e-5), ("none", 1e-3, 10)])
def test_a_trainer_that_is_aware_agrees_with_the_sampler(arch, weights, qat, least, most):
    graph = nnx.split(nnx.eval_shape(lambda: Decoder(arch, rngs=nnx.Rngs(0), qat=qat)))[0]
    run = jax.jit(lambda tokens: jax.nn.log_softmax(nnx.merge(graph, weights)(tokens)))
    apart = []
    for request, said in zip(asked(), complete(arch, weights, int4=True), strict=True):
        sequence = np.zeros((1, LIMITS.positions), np.int32)
        sequence[0, : len(request.prompt) + len(said.tokens)] = [*request.prompt, *said.tokens]
        here = np.arange(len(said.tokens)) + len(request.prompt)
        apart.append(np.abs(run(sequence)[0, here - 1, said.tokens] - said.logprobs).mean())
    assert least <= np.mean(apart) <= most


def test_the_gradient_of_an_aware_trainer_passes_to_the_weights_as_they_are(arch, weights):
    def gradient(weights, qat):
        graph = nnx.split(nnx.eval_shape(lambda: Decoder(arch, rngs=nnx.Rngs(0), qat=qat)))[0]
        tokens = jnp.arange(16)[None]
        return jax.jit(jax.grad(lambda w: jnp.square(nnx.merge(graph, w)(tokens)).mean()))(weights)

    aware, plain = gradient(weights, "int4"), gradient(dequantised(weights), "none")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), aware, plain)


def test_what_is_released_in_int4_is_what_was_sampled_with(arch, make_model, tmp_path):
    released = dataclasses.replace(minimax_m2.TINY, layers=2, vocab=96, hidden=64, expert_ffn=32, experts=4)
    model = make_model(released)
    engine = Engine(released, LIMITS, int4=True)
    hf.save(model, tmp_path, form="int4")
    greedy = [dataclasses.replace(request, temperature=0.0) for request in asked()]
    before, after = (engine.load(nnx.state(m)) for m in (model, hf.load(tmp_path, dtype="float32")))

    def experts(weights):
        return [leaf for leaf in jax.tree.leaves(weights) if leaf.dtype == jnp.int4]

    assert len(experts(before)) == 3 * released.layers
    for one, two in zip(experts(before), experts(after), strict=True):
        np.testing.assert_array_equal(one, two)
    said = [[one.tokens.tolist() for one in engine.complete(weights, greedy)] for weights in (before, after)]
    assert said[0] == said[1]
