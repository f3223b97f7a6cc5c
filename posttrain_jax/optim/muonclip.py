"""MuonClip: Muon, and after each step weights scaled down where a head's attention logits have grown too large.

QK-Clip, Kimi K2 (arXiv 2507.20534, section 2.1, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from posttrain_jax.optim.muon import muon
from posttrain_jax.optim.names import names

MaxLogits = Mapping[str, Float[Array, "*layers heads"]]


class HeadColumns(NamedTuple):
    """Which columns of a weight make a head's logits, and how.

    Attributes:
      powers: for each of a head's columns, the power of γ that it is scaled by; the heads' columns stand one after the
        other in the weight's last axis.
      shared: all heads use the same columns, which then follow the smallest γ.
    """

    powers: tuple[float, ...]
    shared: bool = False


def clip_factors(max_logits: Float[Array, "*layers heads"], threshold: float) -> Float[Array, "*layers heads"]:
    """γ = min(1, τ / S_max) of each head; 1 for a head that saw nothing."""
    return jnp.where(max_logits > threshold, threshold / max_logits, 1.0)


def qk_clip(threshold: float, columns: Mapping[str, HeadColumns]) -> optax.GradientTransformationExtraArgs:
    """Goes last in a chain: W ← (W + change) · γ^power, head by head.

    Its ``update`` takes ``max_logits``: for each attention, by the path of its weights ("stacks/0/0/attention"), the
    largest logit every head had in this step's forward pass. An attention that is not named is left alone.

    Args:
      threshold: τ.
      columns: which weights of an attention to scale, by name.

    Raises:
      ValueError: in ``update``, without ``max_logits``.
    """

    def update(updates, state, params=None, *, max_logits: MaxLogits | None = None, **extra):
        del extra
        if max_logits is None:
            raise ValueError("qk_clip needs update(..., max_logits=...): each head's largest logit in the forward pass")
        factors = {place: clip_factors(peaks, threshold) for place, peaks in max_logits.items()}

        def clip(path, change, weight):
            place, name = attention_of(path)
            if place not in factors or name not in columns:
                return change
            scale = _scale(factors[place], columns[name], weight.ndim)
            return (weight + change) * scale - weight

        return jax.tree_util.tree_map_with_path(clip, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def attention_of(path: tuple) -> tuple[str, str]:
    """The attention that a weight belongs to ("stacks/0/0/attention"), and its name there; empty for any other."""
    along = names(path)
    if "attention" not in along:
        return "", ""
    at = along.index("attention") + 1
    return "/".join(along[:at]), along[at]


def _scale(factors, columns, ndim):
    if columns.shared:
        factors = factors.min(axis=-1, keepdims=True)
    scale = factors[..., None] ** jnp.asarray(columns.powers, factors.dtype)
    scale = scale.reshape(*factors.shape[:-1], -1)
    return jnp.expand_dims(scale, range(factors.ndim - 1, ndim - 1))


def muonclip(
    learning_rate: optax.ScalarOrSchedule,
    qk_clip_threshold: float = 100.0,
    *,
    columns: Mapping[str, HeadColumns],
    **settings: Any,
) -> optax.GradientTransformationExtraArgs:
    """Muon followed by QK-Clip. ``update(gradients, state, weights, max_logits=...)``.

    Args:
      learning_rate: as for `muon`.
      qk_clip_threshold: τ; Kimi K2 has 100.
      columns: as for `qk_clip`; `models.head_columns` knows those of an architecture.
      settings: of `muon`.
    """
    return optax.chain(muon(learning_rate, **settings), qk_clip(qk_clip_threshold, columns))
