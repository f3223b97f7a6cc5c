"""Reinforcement learning: roll out, judge, and learn from it in a few off-policy updates (MiniMax-M1, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
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
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.run.recipe import RL, Tasks
from posttrain_jax.stages import replaying
from posttrain_jax.stages.critic import split_critic
from posttrain_jax.stages.experience import Judged, collect, sample, statistics
from posttrain_jax.stages.flight import Flight
from posttrain_jax.stages.hindsight import make_hindsight
from posttrain_jax.stages.judging import Judging
from posttrain_jax.stages.optimizing import Optimizing
from posttrain_jax.stages.packing import add_ptx, capacity, pack
from posttrain_jax.stages.policy import advantages_and_aggregation, make_loss
from posttrain_jax.stages.scoring import Scoring
from posttrain_jax.stages.step import Step, TrainState, make_update

Minibatch = list[list[tuple[Judged, float]]]  # its groups, each response with its advantage


def train(
    settings: RL,
    optimizing: Optimizing,
    questions: Tasks,
    graph: nnx.GraphDef,
    state: TrainState,
    engine: Engine,
    chat: Chat,
    curriculum: Curriculum,
    sft_data: Batches | None,
    mesh: Mesh,
    key: jax.Array,
    start: int,
    draws: int,
    samples_per_step: int,
    flight: Flight | None = None,
    judging: Judging | None = None,
    scoring: Scoring | None = None,
    rollouts: Path | None = None,
) -> Iterator[Step]:
    """Yields after every step from ``start`` + 1 to ``settings.steps``.

    A step's randomness is ``fold_in(key, step)``; with the weights, the curriculum, ``draws`` and the position in the
    SFT data (all in the cursor) that fixes everything it does. ``scoring`` mixes the rewards of responses and asks
    ``state.reward``; what it has seen is in the cursor too. The metric ``mismatch`` is the mean
    |log π_trainer - log π_sampler| before the first update: what the two implementations of one model disagree by. Its
    99th percentile, its largest and the divergence stand beside it. A ``flight`` collects what is of many turns, or
    goes on beyond a step. ``rollouts`` is where ``settings.debug`` records steps, or finds them.
    """
    loss = make_loss(graph, settings, optimizing.watch)
    update = make_update(optimizing.optimizer, loss, state, optimizing.after, optimizing.overlap)
    hindsight = make_hindsight(graph, settings, mesh)
    prepare = Preparation(
        settings, engine.limits.positions, engine.limits.max_response, mesh, flight.episodes.segments if flight else 1
    )
    for number in range(start + 1, settings.steps + 1):
        load = partial(engine.load, split_critic(state.weights)[0])
        step_key = jax.random.fold_in(key, number)
        curriculum.progress = (number - 1) / max(1, settings.steps - 1)
        if settings.debug == "train_only":
            experience = replaying.read(_folder(rollouts), number)
        elif flight:
            experience = flight.collect(load(), number - 1, draws)
        else:
            told = settings, questions, engine, load(), chat, curriculum, step_key, draws, judging
            experience = collect(*told, **({"mix": partial(scoring, state.reward)} if scoring else {}))
        draws = experience.draws
        metrics: dict[str, Any] = statistics(experience)
        metrics |= {f"difficulty/{bucket}": cells for bucket, cells in curriculum.buckets().items()}
        version = number - 1 if settings.carry_over else None
        deals = prepare.minibatches(experience.groups)
        if settings.debug == "rollout_only":
            replaying.write(_folder(rollouts), number, experience, chat)
            deals = []
        batches = (prepare(deal, sft_data, version) for deal in deals)
        if hindsight:  # by the weights that sampled, so before the first update
            batches = [(n, hindsight(state.weights, state.reference, batch, n)) for n, batch in batches]
        batch, updates = None, []
        for filled, batch in batches:
            state, numbers = update(state, batch, filled)
            updates.append(numbers)
        metrics.update(_summarise(updates))
        metrics["learning_rate"] = optimizing.schedule((number - 1) * settings.minibatches)
        cursor = {"draws": draws, "curriculum": curriculum.state()} | ({"scoring": scoring.state()} if scoring else {})
        yield Step(
            number,
            state,
            metrics,
            tokens=sum(t.size for t in experience.everything),
            cursor=cursor
            | ({"sft_data": sft_data.state()} if sft_data else {})
            | ({"flight": flight.state()} if flight and settings.carry_over else {}),
            samples=[
                sample(chat, "rl", number, trajectory)
                for trajectory in [g[0] for g in experience.groups[:samples_per_step]] + experience.hacked
            ],
            batch=batch,
        )


def _folder(rollouts: Path | None) -> Path:
    if rollouts is None:
        raise ValueError("rl.debug needs a folder of rollouts")
    return rollouts


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
    ) -> tuple[int, dict[str, Array]]:
        """Filled microbatches, and the minibatch on the mesh; rows of the SFT data behind it, if there are any."""
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
        if sft_data:
            filled, rows = add_ptx(filled, rows, next(sft_data))
        return filled, meshes.put_batch(rows, self.mesh, batch_axis=1)

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
