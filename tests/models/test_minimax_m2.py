"""The decoder against transformers' MiniMaxM2ForCausalLM, and against itself in its other forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import token_logprobs
from posttrain_jax import hf
from posttrain_jax.models import minimax_m2
from posttrain_jax.models.decoder import REMAT, Decoder, abstract, materialise, unstack
from posttrain_jax.parallel import mesh as meshes

# Fewer than 128 tokens go through every expert, more are sorted by expert: both ways must agree with the reference.
BATCHES = {"few": (2, 24), "many": (3, 70)}


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    """The same weights in transformers, carried over by our own checkpoint."""
    pytest.importorskip("torch", reason="the reference model needs torch")
    transformers = pytest.importorskip("transformers", reason="the reference model needs transformers")
    if not hasattr(transformers, "MiniMaxM2ForCausalLM"):
        pytest.skip("this transformers has no MiniMaxM2ForCausalLM")
    folder = tmp_path_factory.mktemp("minimax_m2")
    hf.save(model, folder)
    theirs, info = transformers.MiniMaxM2ForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return theirs.float().eval()


forward = nnx.jit(lambda model, *inputs: model(*inputs))


def random_tokens(arch, shape, seed=0):
    return np.random.default_rng(seed).integers(0, arch.vocab, shape)


def close(ours, theirs, tolerance):
    """Equal within ``tolerance`` of the largest number of the expected array."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("size", BATCHES)
def test_logits_are_those_of_transformers(model, reference, arch, size):
    import torch

    tokens = random_tokens(arch, BATCHES[size])
    with torch.no_grad():
        theirs = reference(torch.from_numpy(tokens)).logits.numpy()
    ours = forward(model, tokens)
    assert ours.dtype == jnp.float32
    close(ours, theirs, 2e-6)


@pytest.mark.parametrize("size", BATCHES)
def test_gradients_are_those_of_transformers(model, reference, arch, size):
    import torch

    tokens = random_tokens(arch, BATCHES[size], seed=1)
    graph, weights = nnx.split(model)

    @jax.jit
    @jax.value_and_grad
    def loss(weights):
        model = nnx.merge(graph, weights)
        return -token_logprobs(model.hidden(tokens[:, :-1]), model.head[...], tokens[:, 1:])[0].mean()

    value, ours = loss(weights)
    reference.zero_grad()
    logits = reference(torch.from_numpy(tokens[:, :-1])).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(tokens[:, 1:]).flatten())
    expected.backward()
    close(value, expected.item(), 1e-6)

    layers, theirs = ours["stacks"][0][0], reference.model.layers
    close(ours["embed"][...], reference.model.embed_tokens.weight.grad, 1e-5)
    close(ours["head"][...].T, reference.lm_head.weight.grad, 1e-5)
    close(ours["norm"][...], reference.model.norm.weight.grad, 1e-5)
    for i, layer in enumerate(theirs):
        attention, moe, experts = layers["attention"], layers["ffn"], layer.mlp.experts
        close(layers["attention_norm"][i], layer.input_layernorm.weight.grad, 1e-5)
        close(layers["ffn_norm"][i], layer.post_attention_layernorm.weight.grad, 1e-5)
        for name in "qkvo":
            close(attention[name][i].T, getattr(layer.self_attn, f"{name}_proj").weight.grad, 1e-5)
        for name in ("q_norm", "k_norm"):
            close(attention[name][i], getattr(layer.self_attn, name).weight.grad, 1e-5)
        close(moe["router"][i].T, layer.mlp.gate.weight.grad, 1e-5)
        gate_up = np.concatenate([moe["gate"][i], moe["up"][i]], axis=-1).swapaxes(1, 2)
        close(gate_up, experts.gate_up_proj.grad, 1e-5)
        close(moe["down"][i].swapaxes(1, 2), experts.down_proj.grad, 1e-5)
        assert not np.any(moe["bias"][i])


def test_a_checkpoint_of_transformers_comes_in(model, reference, arch, tmp_path):
    reference.save_pretrained(tmp_path)
    again = hf.load(tmp_path)
    assert dataclasses.replace(again.arch, max_length=arch.max_length) == arch
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))


def test_no_token_sees_ahead(model, arch):
    tokens = random_tokens(arch, (1, 20))
    changed = tokens.copy()
    changed[0, 12:] = (changed[0, 12:] + 1) % arch.vocab
    before, after = forward(model, tokens), forward(model, changed)
    np.testing.assert_allclose(before[:, :12], after[:, :12], atol=1e-6)
    assert np.abs(before[:, 12:] - after[:, 12:]).min(axis=-1).max() > 0.01


@pytest.mark.parametrize("lengths", [(9, 1, 14), (50, 41, 60)], ids=["few tokens", "many tokens"])
def test_packed_sequences_are_as_if_alone(model, arch, lengths):
    sequences = [random_tokens(arch, (1, n), seed=n) for n in lengths]
    padding = 6
    tokens = np.concatenate([*sequences, np.zeros((1, padding), int)], axis=1)
    segments = np.repeat([1, 2, 3, 0], [*lengths, padding])[None]
    positions = np.concatenate([np.arange(n) for n in (*lengths, padding)])[None]
    packed = forward(model, tokens, positions, segments)[0]
    start = 0
    for sequence, n in zip(sequences, lengths, strict=True):
        np.testing.assert_allclose(packed[start : start + n], forward(model, sequence)[0], atol=5e-6)
        start += n
    assert np.isfinite(packed).all()


def test_two_segments_with_one_id_apart_do_not_touch(model, arch):
    """Isolation holds for gradients too: a loss on one sequence gives the other's embeddings none."""
    tokens = np.concatenate([np.arange(10), np.arange(40, 52)])[None]
    segments, positions = np.repeat([1, 2], [10, 12])[None], np.concatenate([np.arange(10), np.arange(12)])[None]
    graph, weights = nnx.split(model)

    @jax.jit
    @jax.grad
    def gradient(weights):
        return jnp.square(nnx.merge(graph, weights).hidden(tokens, positions, segments)[0, 10:]).sum()

    embed = gradient(weights)["embed"][...]
    assert not np.any(embed[:40]) and np.all(np.abs(embed[40:52]).max(axis=1) > 0)


@pytest.mark.parametrize("remat", list(REMAT))
def test_scanned_and_unrolled_are_one_model(model, make_model, arch, remat):
    unrolled = make_model(arch, scan=False)
    nnx.update(unrolled, unstack(nnx.state(model), arch))
    scanned = make_model(arch, remat=remat)
    tokens = random_tokens(arch, (2, 16))

    def value_and_grad(model):
        graph, weights = nnx.split(model)
        return jax.jit(jax.value_and_grad(lambda w: jnp.square(nnx.merge(graph, w)(tokens)).mean()))(weights)

    (value, gradient), (expected, flat) = value_and_grad(scanned), value_and_grad(unrolled)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    gradient, flat = (jax.tree.leaves(nnx.to_pure_dict(tree)) for tree in (unstack(gradient, arch), flat))
    for ours, theirs in zip(gradient, flat, strict=True):
        close(ours, theirs, 1e-5)


def test_depth_does_not_grow_the_program(arch):
    def equations(layers):
        deep = dataclasses.replace(arch, layers=layers)
        graph, weights = nnx.split(nnx.eval_shape(lambda: Decoder(deep, rngs=nnx.Rngs(0))))
        tokens = jax.ShapeDtypeStruct((2, 100), jnp.int32)
        program = jax.make_jaxpr(jax.grad(lambda w, t: nnx.merge(graph, w)(t).mean()))(weights, tokens)
        return str(program).count(" = ")

    assert equations(2) == equations(20) > 100


def test_the_released_model_counts_right_from_shapes_alone():
    before = len(jax.live_arrays())
    mesh = meshes.make_mesh(fsdp=4, expert=2)
    _, weights = abstract(lambda: Decoder(minimax_m2.FULL, rngs=nnx.Rngs(0), param_dtype="bfloat16"), mesh)
    leaves = jax.tree.leaves(weights)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert len(jax.live_arrays()) == before
    # 228,703,644,928 on Hugging Face, less the 13,880,064 scales of its FP8 format
    assert sum(leaf.size for leaf in leaves) == minimax_m2.FULL.parameters == 228_689_764_864
    assert 9.7e9 < minimax_m2.FULL.active_parameters - minimax_m2.FULL.vocab * minimax_m2.FULL.hidden < 9.9e9
    gate = weights["stacks"][0][0]["ffn"]["gate"].get_value()
    assert gate.sharding.shard_shape(gate.shape) == (62, 256 // (4 * 2), 3072, 1536)


@pytest.mark.parametrize("size", ["TINY", "SMALL"])
def test_the_smaller_sizes_count_right(size):
    arch = getattr(minimax_m2, size)
    shapes = nnx.state(nnx.eval_shape(lambda: Decoder(arch, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == arch.parameters
    assert not arch.problems()


def test_materialised_weights_lie_in_their_shards_and_do_not_depend_on_them(arch):
    def weights(seed, **axes):
        def make():
            return Decoder(arch, rngs=nnx.Rngs(seed))

        return materialise(make, abstract(make, meshes.make_mesh(**axes))[1])

    spread, whole = weights(3, fsdp=8), weights(3, devices=jax.devices()[:1])
    gate = spread["stacks"][0][0]["ffn"]["gate"][...]
    assert {shard.data.shape for shard in gate.addressable_shards} == {(2, 6, 48 // 8, 24)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), spread, whole)
    bands = np.asarray(gate).reshape(2, -1)
    assert abs(gate.std() / 48**-0.5 - 1) < 0.05 and not np.allclose(bands[0], bands[1])


def test_bfloat16_compute_stays_near_and_gives_float32_logits(model, make_model, arch):
    half = make_model(arch, compute_dtype="bfloat16")
    tokens = random_tokens(arch, (2, 30))
    assert jax.eval_shape(half.hidden, tokens).dtype == jnp.bfloat16
    logits, exact = forward(half, tokens), forward(model, tokens)
    error = np.abs(logits - exact).mean() / np.abs(exact).mean()
    assert logits.dtype == jnp.float32
    assert 1e-4 < error < 0.05
