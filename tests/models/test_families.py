"""The decoder as each family against transformers' own model, and against itself in its other forms."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import token_logprobs
from posttrain_jax import hf
from posttrain_jax.hf.families import FAMILIES
from posttrain_jax.hf.table import entries
from posttrain_jax.models import glm_4_6, kimi_k2, minimax_m1, minimax_m2
from posttrain_jax.models.architecture import FULL, LIGHTNING, RopeScaling
from posttrain_jax.models.decoder import Decoder, unstack

SMALL = dict(vocab=96, hidden=48, expert_ffn=24, experts=6)
AIR = dict(qk_norm="none", routed_scaling=1.0)
M1 = dataclasses.replace(minimax_m1.TINY, **SMALL, rotary_dim=minimax_m1.TINY.head_dim)
STRETCHED = RopeScaling("yarn", 4.0, 32)
MODELS = {
    "kimi_k2": dataclasses.replace(kimi_k2.TINY, **SMALL, dense_ffn=56),
    "kimi_k2 direct queries": dataclasses.replace(kimi_k2.TINY, **SMALL, dense_ffn=56, q_rank=0),
    "glm_4_6": dataclasses.replace(glm_4_6.TINY, **SMALL, dense_ffn=56, layers=4, dense_layers=2, mtp_layers=0),
    "glm_4_5_air": dataclasses.replace(glm_4_6.TINY, **SMALL, **AIR, dense_ffn=56, mtp_layers=0),
    "glm_4_6 stretched": dataclasses.replace(glm_4_6.TINY, **SMALL, dense_ffn=56, mtp_layers=0, rope_scaling=STRETCHED),
    "minimax_m2": dataclasses.replace(minimax_m2.TINY, **SMALL),
    # transformers' port rotates whole heads; the released model half of each, as MiniMax-M2 does
    "minimax_m1": dataclasses.replace(M1, lightning_beta=0.7, full_beta=1.2, ffn_beta=0.9),
    "minimax_m1 3:1": dataclasses.replace(M1, pattern=(LIGHTNING,) * 3 + (FULL,)),
}
# what transformers calls the model: (class, model_type)
REFERENCES = {
    "kimi_k2": ("DeepseekV3ForCausalLM", "deepseek_v3"),
    "glm": ("Glm4MoeForCausalLM", "glm4_moe"),
    "minimax_m2": ("MiniMaxM2ForCausalLM", "minimax_m2"),
    "minimax_m1": ("MiniMaxForCausalLM", "minimax"),
}
LENGTH = 70  # times three rows: more than go through every expert

forward = nnx.jit(lambda model, *inputs: model(*inputs))


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def arch(name):
    return MODELS[name]


@pytest.fixture(scope="module")
def model(arch):
    """Random weights everywhere, norms, biases and selection biases too."""
    graph, weights = nnx.split(Decoder(arch, rngs=nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(weights)
    draw = np.random.default_rng(1)
    moved = [leaf + 0.1 * draw.normal(size=leaf.shape).astype(leaf.dtype) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, moved))


@pytest.fixture(scope="module")
def unrolled(model, arch):
    graph = nnx.split(nnx.eval_shape(lambda: Decoder(arch, rngs=nnx.Rngs(0), scan=False)))[0]
    return nnx.merge(graph, unstack(nnx.state(model), arch))


@pytest.fixture(scope="module")
def tokens(arch):
    return np.random.default_rng(0).integers(0, arch.vocab, (3, LENGTH))


@pytest.fixture(scope="module")
def expected(model, tokens):
    return np.asarray(forward(model, tokens))


@pytest.fixture(scope="module")
def reference(model, arch, name, tmp_path_factory):
    """The same weights in transformers, carried over by our own checkpoint."""
    pytest.importorskip("torch", reason="the reference model needs torch")
    transformers = pytest.importorskip("transformers", reason="the reference model needs transformers")
    kind, model_type = next(reference for family, reference in REFERENCES.items() if name.startswith(family))
    if not hasattr(transformers, kind):
        pytest.skip(f"this transformers has no {kind}")
    folder = tmp_path_factory.mktemp("reference")
    hf.save(model, folder)
    theirs = {"model_type": model_type, "architectures": [kind]}
    if model_type == "minimax":  # the port states these in its own words
        config = json.loads((folder / "config.json").read_text())
        types = ["full_attention" if full else "linear_attention" for full in config["attn_type_list"]]
        theirs |= {"layer_types": types, "block_size": 32}
    config = json.loads((folder / "config.json").read_text()) | theirs
    (folder / "config.json").write_text(json.dumps(config))
    loaded, info = getattr(transformers, kind).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    missing = [key for key in info["missing_keys"] if not key.endswith(("slope_rate", "_decay"))]
    assert not (missing or info["unexpected_keys"] or info["mismatched_keys"])
    for layer in loaded.model.layers:  # tables that the released checkpoint does not hold either
        if hasattr(layer.self_attn, "slope_rate"):
            attention = layer.self_attn
            attention.slope_rate = attention.get_slope_rate()
            tables = attention.decay_factors(attention.slope_rate)
            attention.query_decay, attention.key_decay, attention.diagonal_decay = tables
    return loaded.float().eval()


def close(ours, theirs, tolerance):
    """Equal within ``tolerance`` of the largest number of the expected array."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_logits_are_those_of_transformers(reference, tokens, expected):
    import torch

    with torch.no_grad():
        theirs = reference(torch.from_numpy(tokens)).logits.numpy()
    close(expected, theirs, 5e-6)


def test_gradients_of_every_weight_are_those_of_transformers(model, arch, reference, tokens, tmp_path):
    """Theirs come as a checkpoint: the gradients, saved under the weights' names and loaded as if they were weights."""
    import torch

    graph, weights = nnx.split(model)

    @jax.jit
    @jax.value_and_grad
    def loss(weights):
        model = nnx.merge(graph, weights)
        return -token_logprobs(model.hidden(tokens[:, :-1]), model.head[...], tokens[:, 1:])[0].mean()

    value, ours = loss(weights)
    reference.zero_grad()
    logits = reference(torch.from_numpy(tokens[:, :-1])).logits
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(tokens[:, 1:]).flatten())
    theirs.backward()
    close(value, theirs.item(), 1e-6)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.grad)
        for name, buffer in reference.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.zero_()
    reference.save_pretrained(tmp_path)
    expected = nnx.to_pure_dict(nnx.state(hf.load(tmp_path)))
    found, paths = nnx.to_pure_dict(ours), []
    for path, theirs in jax.tree_util.tree_leaves_with_path(expected):
        ours_here = found
        for key in path:
            ours_here = ours_here[key.key]
        scale = float(np.abs(theirs).max())
        paths.append(jax.tree_util.keystr(path))
        np.testing.assert_allclose(ours_here, theirs, rtol=0, atol=1e-4 * scale, err_msg=paths[-1])
    assert len(paths) == len(jax.tree.leaves(ours))


def test_a_checkpoint_of_transformers_comes_in(model, arch, reference, tmp_path):
    reference.save_pretrained(tmp_path)
    again = hf.load(tmp_path)
    assert dataclasses.replace(again.arch, max_length=arch.max_length) == arch


def test_ours_out_and_in_again(model, arch, tmp_path):
    hf.save(model, tmp_path)
    again = hf.load(tmp_path)
    assert again.arch == arch
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))


def test_packed_sequences_are_as_if_alone(model, arch, tokens, expected):
    lengths = (50, 1, 63)
    sequences = [tokens[row, :n] for row, n in enumerate(lengths)]
    packed = np.concatenate([*sequences, np.zeros(6, int)])[None]
    segments = np.repeat([1, 2, 3, 0], [*lengths, 6])[None]
    positions = np.concatenate([np.arange(n) for n in (*lengths, 6)])[None]
    found = forward(model, packed, positions, segments)[0]
    start = 0
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(found[start : start + n], expected[row, :n], atol=1e-4)
        start += n
    assert np.isfinite(found).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, tokens, expected, side):
    pad = np.zeros((3, 9), int)
    real = np.ones_like(tokens)
    padded, segments, positions = (
        np.concatenate(pair if side == "left" else pair[::-1], axis=1)
        for pair in ((pad, tokens), (pad, real), (pad, np.broadcast_to(np.arange(LENGTH), tokens.shape)))
    )
    found = forward(model, padded, positions, segments)
    found = found[:, 9:] if side == "left" else found[:, :LENGTH]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_chunks_and_single_tokens_give_the_logits_of_the_whole(unrolled, tokens, expected):
    extend = nnx.jit(lambda model, *inputs: model.extend(*inputs))
    cache, start, found = unrolled.empty_cache(3, LENGTH + 5), 0, []
    for new in (20, 1, 1, 13, 34, 1):
        positions = np.broadcast_to(np.arange(start, start + new), (3, new))
        hidden, cache = extend(unrolled, tokens[:, start : start + new], positions, cache)
        found.append(unrolled.logits(hidden))
        start += new
    assert start == LENGTH
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-4)


def test_a_padded_chunk_leaves_nothing_behind(unrolled, tokens, expected):
    """Rows of different lengths prefilled together, padded on the right, go on as if each were alone."""
    lengths = np.array([12, 30, 21])
    positions = np.broadcast_to(np.arange(30), (3, 30))
    cache = unrolled.empty_cache(3, LENGTH)
    _, cache = unrolled.extend(tokens[:, :30], positions, cache, valid=positions < lengths[:, None])
    for step in range(3):
        here = lengths + step
        hidden, cache = unrolled.extend(np.take_along_axis(tokens, here[:, None], axis=1), here[:, None], cache)
        np.testing.assert_allclose(unrolled.logits(hidden)[:, 0], expected[np.arange(3), here], atol=1e-4)


def test_latent_attention_caches_576_numbers_a_token_and_a_state_grows_with_nothing():
    kimi = nnx.eval_shape(
        lambda: Decoder(dataclasses.replace(kimi_k2.INSTRUCT, layers=2), rngs=nnx.Rngs(0), scan=False)
    )
    cache = jax.eval_shape(lambda: kimi.empty_cache(1, 1000))
    assert sum(leaf.size for leaf in jax.tree.leaves(cache)) == 2 * 1000 * 576
    m1 = nnx.eval_shape(lambda: Decoder(minimax_m1.TINY, rngs=nnx.Rngs(0), scan=False))
    short, long = (jax.eval_shape(lambda n=n: m1.empty_cache(1, n))[0] for n in (10, 10_000))
    assert short == long and jax.tree.leaves(long)[0].dtype == jnp.float32


@pytest.mark.parametrize(
    "released, weights",
    [
        (kimi_k2.INSTRUCT, 1_026_408_232_448),
        (kimi_k2.THINKING, 1_026_408_232_448),
        (minimax_m2.FULL, 228_689_764_864),
        (minimax_m1.RELEASED, 456_089_655_296),
        (glm_4_6.GLM_4_6, 356_785_898_816),
        (glm_4_6.AIR, 109_227_310_848),
    ],
)
def test_the_abstract_full_models_hold_the_released_number_of_weights(released, weights):
    shapes = nnx.state(nnx.eval_shape(lambda: Decoder(released, rngs=nnx.Rngs(0), param_dtype="bfloat16")))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == released.parameters == weights
    family = FAMILIES[{61: "kimi_k2", 62: "minimax_m2", 80: "minimax_m1"}.get(released.layers, "glm4_moe")]
    paths = [tuple(getattr(k, "key", k) for k in path) for path, _ in nnx.to_flat_state(shapes)]
    assert sorted(map(str, paths)) == sorted(str(entry.path) for entry in entries(family, released))
