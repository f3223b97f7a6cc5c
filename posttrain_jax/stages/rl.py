"""Reinforcement learning: roll out, judge, and learn from it in a few off-policy updates (MiniMax-M1, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.data.pipeline import Batches
from posttrain_jax.objectives.advantages import group_advantages, leave_one_out
from posttrain_jax.objectives.aggregation import token_weights
from posttrain_jax.objectives.mismatch import SPREAD, percentile
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.run.recipe import RL
from posttrain_jax.stages.collecting import Collector
from posttrain_jax.stages.experience import Judged, sample, statistics
from posttrain_jax.stages.hindsight import make_hindsight
from posttrain_jax.stages.optimizing import Optimizing
from posttrain_jax.stages.packing import add_ptx, capacity, pack
from posttrain_jax.stages.policy import advantages_and_aggregation, make_loss
from posttrain_jax.stages.step import Step, TrainState, make_update

Minibatch = list[list[tuple[Judged, float]]]  # its groups, each response with its advantage


def train(
    settings: RL,
    optimizing: Optimizing,
    graph: nnx.GraphDef,
    state: TrainState,
    collector: Collector,
    curriculum: Curriculum,
    chat: Chat,
    prepare: Preparation,
    sft_data: Batches | None,
    *,
    start: int,
    draws: int,
    used: int,
    samples_per_step: int,
) -> Iterator[Step]:
    """Yields after every step from ``start`` + 1 to ``settings.steps``, or to that which uses up ``settings.tokens``.

    What the collector and the curriculum keep, ``draws``, the tokens ``used`` and the position in the SFT data are all
    in the cursor; with the weights that fixes everything a step does. A token is used where it is sampled, and again
    where a loss counts it. The metric ``mismatch`` is the mean |log π_trainer - log π_sampler|
    before the first update, of what the newest policy sampled: what the two implementations of one model disagree by.
    Its 99th percentile, its largest and the divergence stand beside it.
    """
    loss = make_loss(graph, settings, optimizing.watch)
    update = make_update(optimizing.optimizer, loss, state, optimizing.after, optimizing.overlap)
    hindsight = make_hindsight(graph, settings, prepare.mesh)
    for number in range(start + 1, settings.steps + 1):
        if settings.tokens and used >= settings.tokens:
            return
        curriculum.progress = (number - 1) / max(1, settings.steps - 1)
        experience = collector.collect(state, number, draws)
        draws = experience.draws
        metrics: dict[str, Any] = statistics(experience)
        metrics |= {f"difficulty/{bucket}": cells for bucket, cells in curriculum.buckets().items()}
        version = number - 1 if settings.carry_over else None
        batches = (prepare(deal, sft_data, version) for deal in prepare.minibatches(experience.groups))
        if hindsight:  # by the weights that sampled, so before the first update
            batches = [
                (n, hindsight(state.weights, state.reference, batch, n), counted) for n, batch, counted in batches
            ]
        batch, updates, trained = None, [], 0
        for filled, batch, counted in batches:
            state, numbers = update(state, batch, filled)
            updates.append(numbers)
            trained += counted
        sampled = sum(t.length for t in experience.everything)
        used += sampled + trained
        metrics.update(_summarise(updates))
        metrics |= {"sampled_tokens": sampled, "trained_tokens": trained, "used_tokens": used}
        metrics["learning_rate"] = optimizing.schedule((number - 1) * settings.minibatches)
        kept = {"draws": draws, "tokens": used, "curriculum": curriculum.state(), **collector.state()}
        yield Step(
            number,
            state,
            metrics,
            tokens=sum(t.size for t in experience.everything),
            cursor=kept | ({"sft_data": sft_data.state()} if sft_data else {}),
            samples=[
                sample(chat, trajectory)
                for trajectory in [g[0] for g in experience.groups[:samples_per_step]] + experience.hacked
            ],
            batch=batch,
            last=0 < settings.tokens <= used,
        )


class Preparation:
    """From judged groups to the batches of a step's updates."""

    def __init__(self, settings: RL, longest: int, longest_response: int, mesh: Mesh, segments: int = 1):
        self.settings, self.mesh = settings, mesh
        self.room = capacity(settings, longest, segments)
        self.ptx_room = -(-settings.objective.ptx_rows // settings.microbatch_rows)
        advantages, aggregation = advantages_and_aggregation(settings.objective)
        self._advantages = jax.jit(partial(_advantages, kind=advantages, groups=settings.prompts + 1))
        self._weights = jax.jit(
            partial(token_weights, mode=aggregation, prompts=settings.prompts + 1, constant=float(longest_response))
        )

    def minibatches(self, groups: Sequence[Sequence[Judged]]) -> list[Minibatch]:
        """Deals whole groups out to the minibatches, each response with its advantage."""
        numbers, ids = self._ragged([[t.reward for t in group] for group in groups], np.float32)
        advantages = iter(np.asarray(self._advantages(numbers, ids)).tolist())
        paired = [[(trajectory, next(advantages)) for trajectory in group] for group in groups]
        deals = [paired[i :: self.settings.minibatches] for i in range(self.settings.minibatches)]
        return [deal for deal in deals if deal]

    def __call__(
        self, minibatch: Minibatch, sft_data: Batches | None, version: int | None = None
    ) -> tuple[int, dict[str, Array], int]:
        """Filled microbatches, the minibatch on the mesh, and how many tokens a loss counts.

        Rows of the SFT data lie behind the responses, if there are any.
        """
        lengths, ids = self._ragged([[t.length for t, _ in group] for group in minibatch], np.int32)
        responses = [pair for group in minibatch for pair in group]
        filled, rows = pack(
            responses,
            np.asarray(self._weights(lengths, ids))[: len(responses)].tolist(),
            rows=self.settings.microbatch_rows,
            length=self.settings.length,
            capacity=self.room + (self.ptx_room if sft_data else 0),
            version=version,
        )
        counted = sum(trajectory.length for trajectory, _ in responses)
        if sft_data:
            filled, rows = add_ptx(filled, rows, next(sft_data))
            counted += int(np.count_nonzero(rows["ptx"]))
        return filled, meshes.put_batch(rows, self.mesh, batch_axis=1), counted

    def _ragged(self, groups: list[list], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the responses and the groups they belong to, always in arrays of one size."""
        flat = [number for group in groups for number in group]
        numbers = np.zeros(self.settings.prompts * self.settings.group_size, dtype)
        ids = np.full(len(numbers), self.settings.prompts, np.int32)
        numbers[: len(flat)] = flat
        ids[: len(flat)] = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return numbers, ids


def _advantages(
    rewards: Float[Array, " responses"], ids: Int[Array, " responses"], *, kind: str, groups: int
) -> Float[Array, " responses"]:
    if kind == "leave_one_out":
        return leave_one_out(rewards, ids, groups=groups)
    scale = {"group": "group", "batch": "batch", "centred": "none"}[kind]
    return group_advantages(rewards, ids, groups=groups, scale=scale)


def _summarise(updates: list[dict]) -> dict:
    """Means over a step's updates; the mismatches are those of the first, whose weights are the sampler's own."""
    if not updates:
        return {}
    first, last = updates[0], updates[-1]
    counts = {name: last[name] for name in ("skipped", "bad_in_a_row")}
    fresh = jnp.maximum(first["fresh"], 1e-6) if "fresh" in first else 1.0
    apart = {name: first[name] / fresh for name in ("mismatch", "mismatch_kl")}
    names = first.keys() - counts.keys() - apart.keys() - {"tokens", SPREAD}
    means = {name: sum(u[name] for u in updates) / len(updates) for name in sorted(names)}
    return {**means, **apart, **_percentiles(first[SPREAD]), **counts}


@jax.jit
def _percentiles(spread: Float[Array, " classes"]) -> dict[str, Float[Array, ""]]:
    return {"mismatch_p99": percentile(spread, 0.99), "mismatch_max": percentile(spread, 1.0)}
