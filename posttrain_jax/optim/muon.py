"""Muon as Moonshot and Zhipu train with it (Moonlight, arXiv 2502.16982, section 2; GLM-4.5, arXiv 2508.06471, 3.1)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding

from posttrain_jax.optim.adamw import adamw
from posttrain_jax.optim.names import is_hidden_matrix, matrices
from posttrain_jax.optim.newton_schulz import orthogonalise_all


class MuonState(NamedTuple):
    """M, the decaying sum of gradients."""

    momentum: Any


def scale_by_muon(
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    update_rms: float = 0.2,
    steps: int = 5,
    dtype: str = "float32",
    momentum_dtype: str | None = None,
    shardings: Any = None,
) -> optax.GradientTransformation:
    """The update of a tree of matrices, not yet times the learning rate:

        M ← μ M + G,   0.2 · √max(rows, columns) · orthogonalise(μ M + G)

    Leading axes of a leaf are stacks of matrices: layers, experts. A full-rank update has a root mean square of
    ``update_rms``, about AdamW's, so learning rate and decay can be those of AdamW.

    Args:
      momentum: μ.
      nesterov: orthogonalise μ M + G (Moonlight's code) or M (as Kimi K2's report writes it).
      update_rms: root mean square of an update.
      steps: Newton-Schulz iterations.
      dtype: format of their products.
      momentum_dtype: format M is kept in; None is the weights'.
      shardings: a tree like the weights, of where they lie on a mesh (`newton_schulz.orthogonalise_all`).
    """
    places = dict(jax.tree_util.tree_flatten_with_path(shardings, is_leaf=lambda x: isinstance(x, Sharding))[0])

    def init(params):
        return MuonState(jax.tree.map(lambda w: jnp.zeros(w.shape, momentum_dtype or w.dtype), params))

    def update(updates, state, params=None):
        del params
        moved = jax.tree.map(lambda m, g: momentum * m.astype(g.dtype) + g, state.momentum, updates)
        ahead = jax.tree.map(lambda m, g: momentum * m + g, moved, updates) if nesterov else moved
        flat, form = jax.tree_util.tree_flatten_with_path(ahead)
        found = orthogonalise_all(
            [x for _, x in flat], [places.get(path) for path, _ in flat], steps=steps, dtype=dtype
        )
        scaled = [update_rms * math.sqrt(max(x.shape[-2:])) * x for x in found]
        kept = jax.tree.map(lambda new, old: new.astype(old.dtype), moved, state.momentum)
        return jax.tree.unflatten(form, scaled), MuonState(kept)

    return optax.GradientTransformation(init, update)


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    update_rms: float = 0.2,
    steps: int = 5,
    dtype: str = "float32",
    beta1: float = 0.9,
    beta2: float = 0.95,
    epsilon: float = 1e-15,
    weight_decay: float = 0.1,
    clip_norm: float = 1.0,
    momentum_dtype: str | None = None,
    shardings: Any = None,
) -> optax.GradientTransformation:
    """Clips the global gradient norm, then Muon for hidden matrices and AdamW for all else, both with decoupled decay.

    W ← W - η (0.2 · √max(rows, columns) · O + λ W). AdamW has the token embedding, the head, norms and biases
    (`names.is_hidden_matrix`). Arguments as for `scale_by_muon` and `adamw`.
    """
    of_matrices = optax.chain(
        scale_by_muon(
            momentum=momentum,
            nesterov=nesterov,
            update_rms=update_rms,
            steps=steps,
            dtype=dtype,
            momentum_dtype=momentum_dtype,
            shardings=shardings,
        ),
        optax.add_decayed_weights(weight_decay, mask=matrices),
        optax.scale_by_learning_rate(learning_rate),
    )
    others = adamw(
        learning_rate,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        weight_decay=weight_decay,
        clip_norm=0.0,
        momentum_dtype=momentum_dtype,
    )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.partition({"matrix": of_matrices, "other": others}, _labels),
    )


def _labels(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: "matrix" if is_hidden_matrix(path, leaf) else "other", params
    )
