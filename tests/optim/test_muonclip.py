"""QK-Clip: exactly where it should scale, to exactly the threshold, and nothing else touched."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pallas_kernels.softmax_attention import xla
from posttrain_jax.models import glm_4_6, kimi_k2, minimax_m1, minimax_m2
from posttrain_jax.models.head_columns import head_columns
from posttrain_jax.optim.freeze import freeze
from posttrain_jax.optim.muon import muon
from posttrain_jax.optim.muonclip import HeadColumns, clip_factors, muonclip, qk_clip
from posttrain_jax.optim.names import names
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.run.recipe import Optimizer, Pace
from posttrain_jax.stages import sft
from posttrain_jax.stages.observing import Watch, watched_trunk
from posttrain_jax.stages.optimizing import make_optimizing
from posttrain_jax.stages.step import MAX_LOGITS, fresh_state, make_update

MESH = make_mesh(devices=jax.local_devices()[:1])
SMALL = dict(layers=3, vocab=64, hidden=32, expert_ffn=16, experts=4)
ARCHS = {
    "latent": dataclasses.replace(kimi_k2.TINY, **SMALL, dense_ffn=24),
    "grouped, bias": dataclasses.replace(glm_4_6.TINY, **SMALL, dense_ffn=24, mtp_layers=0, qk_norm="none"),
    "grouped, norm of all": dataclasses.replace(minimax_m2.TINY, **SMALL),
    "grouped, norm of each": dataclasses.replace(glm_4_6.TINY, **SMALL, dense_ffn=24, mtp_layers=0, qk_norm="head"),
    "beside lightning": dataclasses.replace(minimax_m1.TINY, **{**SMALL, "layers": minimax_m1.TINY.layers}),
}


@pytest.fixture(scope="module")
def batch():
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 64, (2, 25))
    segments = np.repeat(np.array([[1, 2, 0]]), [9, 12, 3], axis=1).repeat(2, axis=0)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments,
        "positions": np.tile(np.r_[np.arange(9), np.arange(12), np.arange(3)], (2, 1)),
        "mask": (segments > 0).astype(np.float32),
    }


def logits_of(graph, weights, batch):
    """The largest logit of each head of each layer, by the path of its attention."""

    def look(weights):
        return watched_trunk(nnx.merge(graph, weights), batch, jnp.float32(1.0), Watch(logits=True))[2][MAX_LOGITS]

    return jax.jit(look)(weights)


def test_peaks_are_the_largest_logits_and_padding_does_not_count():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(2, 13, 6, 8)), rng.normal(size=(2, 13, 3, 8)), rng.normal(size=(2, 13, 3, 8))
    q[:, 11:] *= 100  # padding
    segments = np.repeat([[1, 2, 0], [1, 1, 0]], [5, 6, 2], axis=1)
    expected = np.full(6, -np.inf)
    for b, i, h in np.ndindex(2, 13, 6):
        seen = [j for j in range(i + 1) if segments[b, j] == segments[b, i] != 0]
        expected[h] = max([expected[h], *(0.3 * q[b, i, h] @ k[b, j, h // 2] for j in seen)])
    for cut in ({}, {"shortest_stretch": 4}, {"shortest_stretch": 4, "query_block": 3}):
        arrays = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
        _, peaks = xla.attend(*arrays, segments, segments, scale=0.3, **cut)
        np.testing.assert_allclose(peaks, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ARCHS)
def test_after_a_clip_no_head_exceeds_the_threshold(kind, batch, make_model):
    """Without a change of the weights: heads above τ come down to τ, and those below stay bit for bit."""
    arch = ARCHS[kind]
    graph, weights = nnx.split(make_model(arch))
    before = logits_of(graph, weights, batch)
    every = np.concatenate([np.asarray(p).reshape(-1) for p in before.values()])
    threshold = float(np.median(every[np.isfinite(every)]))
    assert threshold > 0
    clip = qk_clip(threshold, head_columns(arch))
    still = jax.tree.map(jnp.zeros_like, weights)
    changes, _ = clip.update(still, clip.init(weights), weights, max_logits=before)
    after = logits_of(graph, optax.apply_updates(weights, changes), batch)
    first = min(before)  # later layers read what the clipped ones made of the text
    expected = np.minimum(before[first], threshold)[0]
    if kind != "grouped, norm of each":
        np.testing.assert_allclose(after[first][0], expected, rtol=1e-4)
    assert (np.asarray(after[first][0]) <= threshold * (1 + 1e-4)).all()
    wanted = {"latent": {"q", "kv"}, "grouped, bias": {"q", "q_bias"}, "beside lightning": {"q"}}.get(kind, {"q_norm"})
    moved = {path[-1] for path, change in changes.flat_state() if np.any(change.get_value())}
    assert moved == wanted


def test_latent_attention_is_scaled_as_published(make_model):
    """√γ on both parts without position, γ on the rotated queries; values and the shared rotated key stay."""
    arch = ARCHS["latent"]
    _, weights = nnx.split(make_model(arch))
    place, gammas = "stacks/1/0/attention", np.array([[1.0, 0.25, 0.5, 1.0], [0.81, 1.0, 1.0, 0.04]])
    clip = qk_clip(100.0, head_columns(arch))
    still = jax.tree.map(jnp.zeros_like, weights)
    changes, _ = clip.update(still, clip.init(weights), weights, max_logits={place: jnp.asarray(100 / gammas)})
    after = optax.apply_updates(weights, changes)["stacks"][1][0]["attention"]
    attention = weights["stacks"][1][0]["attention"]
    plain, value = arch.head_dim - arch.rotary_dim, arch.value_dim
    for layer, head in np.ndindex(2, 4):
        gamma = gammas[layer, head]
        of_q, of_kv = slice(head * 24, head * 24 + 24), slice(head * (plain + value), (head + 1) * (plain + value))
        q, kv = attention["q"][layer][:, of_q], attention["kv"][layer][:, of_kv]
        new_q, new_kv = after["q"][layer][:, of_q], after["kv"][layer][:, of_kv]
        np.testing.assert_allclose(new_q[:, :plain], q[:, :plain] * gamma**0.5, rtol=1e-5)
        np.testing.assert_allclose(new_q[:, plain:], q[:, plain:] * gamma, rtol=1e-5)
        np.testing.assert_allclose(new_kv[:, :plain], kv[:, :plain] * gamma**0.5, rtol=1e-5)
        np.testing.assert_array_equal(new_kv[:, plain:], kv[:, plain:])
    for name in ("kv_down", "q_down", "o"):
        np.testing.assert_array_equal(after[name], attention[name])


def test_the_change_is_made_before_the_scaling():
    """W ← (W + ΔW) γ: what Muon did in the same step is scaled too."""
    weights = {"attention": {"q": jnp.ones((2, 6)), "k": jnp.ones((2, 6))}}
    change = jax.tree.map(lambda w: 0.5 * w, weights)
    clip = qk_clip(10.0, {"q": HeadColumns((1.0, 1.0, 1.0))})
    found, _ = clip.update(change, clip.init(weights), weights, max_logits={"attention": jnp.array([5.0, 40.0])})
    np.testing.assert_allclose(weights["attention"]["q"] + found["attention"]["q"], [[1.5] * 3 + [0.375] * 3] * 2)
    np.testing.assert_array_equal(found["attention"]["k"], change["attention"]["k"])


def test_factors():
    np.testing.assert_allclose(clip_factors(jnp.array([-jnp.inf, -5, 0, 99, 100, 200]), 100.0), [1, 1, 1, 1, 1, 0.5])


def test_what_the_forward_pass_saw_is_required():
    optimizer = muonclip(1e-2, columns={})
    with pytest.raises(ValueError, match="max_logits"):
        optimizer.update({"w": jnp.ones((2, 2))}, optimizer.init({"w": jnp.ones((2, 2))}), {"w": jnp.ones((2, 2))})


@pytest.mark.parametrize("kind", ["latent", "grouped, bias"])
def test_a_hot_learning_rate_is_survived(kind, batch, make_model):
    """Plain Muon drives the logits of a layer far over 1,000; MuonClip stays below 1.1 τ and learns.

    γ is from the forward pass before the step, so what one step adds stands above τ until the next.
    """
    arch, steps, threshold = dataclasses.replace(ARCHS[kind], layers=1), 300, 300.0
    graph, weights = nnx.split(make_model(arch))
    cut = {name: jnp.asarray(x)[None] for name, x in batch.items()}
    cut["targets"] = cut["tokens"] * 3 % 64
    report = make_optimizing(Pace(), 1, arch).after
    told = {}
    # Norms and embedding stay: AdamW at such a rate would move every logit by percents in a step.
    plain = freeze(
        muon(0.1, weight_decay=0.0), lambda path: "embed" in names(path) or any("norm" in n for n in names(path))
    )
    loss = sft.make_loss(graph, 0.0, Watch(logits=True))
    for name in ("muon", "muonclip"):
        optimizer = optax.chain(plain, qk_clip(threshold, head_columns(arch))) if name == "muonclip" else plain
        state = fresh_state(jax.tree.map(jnp.copy, weights), optimizer, MESH)
        update = make_update(optimizer, loss, state, report)
        metrics = []
        for _ in range(steps):
            state, numbers = update(state, cut, 1)
            metrics.append(numbers)
        told[name] = np.array([[float(m[n]) for n in ("loss", "max_logit")] for m in metrics])
    hot, held = told["muon"], told["muonclip"]
    assert hot[:, 1].max() > 1500
    assert held[:, 1].max() <= 1.1 * threshold and np.isfinite(held).all()
    assert held[-10:, 0].mean() < 0.5 * held[0, 0]


def test_microbatches_tell_their_largest(batch, make_model):
    """A batch cut in two has the logits of the whole, not their sum; padding microbatches do not count."""
    arch = ARCHS["latent"]
    graph, weights = nnx.split(make_model(arch))
    optimizing = make_optimizing(Pace(), 10, arch, algorithm=Optimizer(name="muonclip"))
    found = []
    for count in (1, 2):
        state = fresh_state(jax.tree.map(jnp.copy, weights), optimizing.optimizer, MESH)
        update = make_update(optimizing.optimizer, sft.make_loss(graph, 0.0, optimizing.watch), state, optimizing.after)
        cut = {name: jnp.asarray(x).reshape(count, -1, x.shape[1]) for name, x in batch.items()}
        _, metrics = update(state, cut, count)
        found.append({name: float(value) for name, value in metrics.items() if "logit" in name})
    assert found[0] == pytest.approx(found[1], rel=1e-5) and len(found[0]) == 4
    peaks = max(float(p.max()) for p in logits_of(graph, weights, batch).values())
    assert found[0]["max_logit"] == pytest.approx(peaks, rel=1e-5)
