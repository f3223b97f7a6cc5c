"""A stage's optimizer from its settings, with what it needs to see and what happens after each update."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx

from posttrain_jax.models.architecture import Architecture
from posttrain_jax.models.head_columns import head_columns
from posttrain_jax.optim.adamw import adamw
from posttrain_jax.optim.freeze import freeze
from posttrain_jax.optim.masters import with_masters
from posttrain_jax.optim.muon import muon
from posttrain_jax.optim.muonclip import qk_clip
from posttrain_jax.optim.schedules import schedule
from posttrain_jax.run.recipe import Optimizer, Pace, Router
from posttrain_jax.stages.observing import NOTHING, Watch, is_router, steer
from posttrain_jax.stages.step import MAX_LOGITS

ADAMW = Optimizer()


@dataclasses.dataclass(frozen=True)
class Optimizing:
    """How a stage moves its weights.

    Attributes:
      optimizer: the optax transformation.
      schedule: its learning rate at each update.
      watch: what a loss has to look at for it.
      threshold: QK-Clip's τ, for the metrics.
      overlap: whether an update's collectives run inside its kernels (`parallel.overlap`).
    """

    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    watch: Watch
    threshold: float
    overlap: bool = False

    def after(self, weights: nnx.State, metrics: dict[str, Any]) -> tuple[nnx.State, dict[str, Any]]:
        """After an update: selection biases are steered, and the metrics told in single numbers."""
        weights, metrics = steer(weights, metrics, self.watch.router)
        if MAX_LOGITS not in metrics:
            return weights, metrics
        peaks = metrics[MAX_LOGITS]
        every = jnp.concatenate([p.reshape(-1) for p in peaks.values()])
        told = {"max_logit": every.max(), "qk_clipped": (every > self.threshold).mean()}
        for place, layers in peaks.items():
            _, s, p, _ = place.split("/")
            told |= {f"max_logit/{s}.{repeat}.{p}": layer.max() for repeat, layer in enumerate(layers)}
        return weights, {name: value for name, value in metrics.items() if name != MAX_LOGITS} | told


def make_optimizing(
    pace: Pace,
    updates: int,
    arch: Architecture,
    *,
    algorithm: Optimizer = ADAMW,
    router: Router = NOTHING.router,
    shardings: Any = None,
    overlap: bool = False,
) -> Optimizing:
    """The optimizer of a stage of ``updates`` updates.

    Args:
      pace: the stage's learning rate, its schedule, decay and clipping.
      updates: optimiser steps of the stage.
      arch: the model's, for QK-Clip.
      algorithm: the run's.
      router: what training does to routers; frozen ones stay as they are.
      shardings: where the weights lie, for Muon to deal its matrices out.
      overlap: handed on.
    """
    path = schedule(
        pace.schedule,
        pace.learning_rate,
        updates,
        warmup_steps=pace.warmup_steps,
        final_ratio=pace.final_ratio,
        decay_share=pace.decay_share,
    )
    shared: dict[str, Any] = dict(
        beta1=algorithm.beta1,
        beta2=algorithm.beta2,
        epsilon=algorithm.epsilon,
        weight_decay=pace.weight_decay,
        clip_norm=pace.clip_norm,
        momentum_dtype=algorithm.momentum_dtype or None,
    )
    clipping = algorithm.name == "muonclip"
    if algorithm.name == "adamw":
        optimizer = adamw(path, **shared)
    else:
        optimizer = muon(
            path,
            momentum=algorithm.momentum,
            nesterov=algorithm.nesterov,
            update_rms=algorithm.update_rms,
            steps=algorithm.newton_schulz_steps,
            dtype=algorithm.newton_schulz_dtype,
            shardings=shardings,
            **shared,
        )
    if router.freeze:
        optimizer = freeze(optimizer, is_router)
    if clipping:
        optimizer = optax.chain(optimizer, qk_clip(algorithm.qk_clip_threshold, head_columns(arch)))
    if algorithm.master_weights:
        optimizer = with_masters(optimizer)
    return Optimizing(optimizer, path, Watch(router, clipping), algorithm.qk_clip_threshold, overlap)
