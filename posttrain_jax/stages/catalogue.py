"""The stages by name: what the state of each is made of, and the steps that it takes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from posttrain_jax.chat.format import Chat
from posttrain_jax.data import beginnings, pairs, tasks
from posttrain_jax.data import pipeline as data
from posttrain_jax.data.curriculum import Curriculum, mixture
from posttrain_jax.data.sources import Source
from posttrain_jax.data.sources import open as open_conversations
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.stages import distill, preference, reward_model, rl, sft
from posttrain_jax.stages.collecting import AtOnce, Collector, InFlight, Recorded, Replayed
from posttrain_jax.stages.critic import split_critic, with_critic
from posttrain_jax.stages.drawing import in_turn
from posttrain_jax.stages.evaluation import evaluate
from posttrain_jax.stages.flight import Flight
from posttrain_jax.stages.heat import Heat
from posttrain_jax.stages.judging import Judging, make_judging
from posttrain_jax.stages.optimizing import Optimizing, make_optimizing
from posttrain_jax.stages.refreshing import Refresh
from posttrain_jax.stages.reward_model import Scorer
from posttrain_jax.stages.scoring import Scoring
from posttrain_jax.stages.step import Step, TrainState, layout

SHARES = ("careful_share", "direct_share", "chinese_share")
PROBES = 2**31  # index of the first question that the temperature is judged by; RL counts its draws from 0
HELDOUT = "heldout"  # beside the stages' names: the pairs that a reward model is judged by


@dataclasses.dataclass(frozen=True)
class Shared:
    """What a stage is made of.

    Attributes:
      weights: the policy's, as shapes.
      sources: of the records that it reads.
      workdir: where a judge's answers are kept.
      folder: of what this stage alone writes.
    """

    recipe: Recipe
    mesh: Mesh
    chat: Chat
    engine: Engine
    graph: nnx.GraphDef
    weights: nnx.State
    sources: Mapping[str, Source]
    workdir: Path
    folder: Path


def sources(recipe: Recipe, stage: str, chat: Chat) -> dict[str, Source]:
    """The records that a stage reads, every line of them checked; those of ``distill`` are not there before it.

    What SFT reads is as the chat has it learnt, `data.beginnings`.

    Raises:
      UserError: as of `data.sources.open` and `data.pairs.open`.
    """
    told: dict[str, Any] = dict(
        names=recipe.tasks.names or tasks.TASKS,
        max_level=recipe.tasks.max_level,
        system=recipe.tasks.system,
        seed=recipe.tasks.seed,
    )
    played = {name: partial(worlds.demonstration, name) for name in recipe.tasks.names if worlds.is_world(name)}
    found: dict[str, Source] = {}
    if stage == "sft" or (stage == "rl" and recipe.rl.objective.ptx_weight):
        more: dict[str, Any] = {name: getattr(recipe.sft, name) for name in SHARES} | {"demonstrations": played}
        found["sft"] = beginnings.learnt(open_conversations(recipe.sft.data, **more, **told), chat)
    asked: dict[str, Any] = told | {"names": [name for name in told["names"] if name not in played] or tasks.TASKS}
    if stage in ("reward_model", "dpo"):
        found[stage] = pairs.open(getattr(recipe, stage).data, "train", **asked)
    if stage == "reward_model":
        found[HELDOUT] = pairs.open(recipe.reward_model.data, "heldout", **asked)
    return found


def remarks(found: Mapping[str, Source]) -> list[str]:
    """What whoever trains on the records should know, a line each."""
    return [line for source in found.values() for line in beginnings.remarks(source)]


def parts(shared: Shared, stage: str, policy: nnx.State | None = None, reward: nnx.State | None = None) -> tuple:
    """What a stage's state is made of, the arguments of `fresh_state`; abstract without a policy."""
    recipe, objective = shared.recipe, shared.recipe.rl.objective
    concrete, policy = policy is not None, policy or shared.weights
    headed = with_critic(policy) if concrete else jax.eval_shape(with_critic, policy)
    if not concrete and "reward_model" in recipe.stages[: recipe.stages.index(stage)]:
        reward = headed
    critic = stage == "reward_model" or (stage == "rl" and objective.name == "ppo")
    referred = stage in ("reward_model", "dpo") or (stage == "rl" and objective.kl_weight > 0)
    trained, reference = headed if critic else policy, policy if referred else None
    return trained, optimizing(shared, stage).optimizer, shared.mesh, reference, reward, recipe.optimizer.offload


def filed(stage: str, state: TrainState) -> TrainState:
    """A state as checkpoints hold it: ``weights`` are the policy's in every stage, and ``reward`` the reward model's.

    While that is trained, the policy is the reference that the state carries along.
    """
    if stage != "reward_model":
        return state
    return dataclasses.replace(state, weights=state.reference, reference=None, reward=state.weights)


def unfiled(stage: str, state: TrainState) -> TrainState:
    """The state out of its `filed` form."""
    if stage != "reward_model":
        return state
    return dataclasses.replace(state, weights=state.reward, reference=state.weights, reward=None)


def kept(stage: str, state: TrainState) -> tuple[Any, Any]:
    """What a stage leaves to the next: the policy, and the reward model if there is one."""
    state = filed(stage, state)
    return split_critic(state.weights)[0], state.reward


def optimizing(shared: Shared, stage: str) -> Optimizing:
    """How a stage moves its weights."""
    recipe, settings = shared.recipe, getattr(shared.recipe, stage)
    return make_optimizing(
        settings.optimizer,
        settings.steps * (settings.minibatches if stage == "rl" else 1),
        recipe.model,
        algorithm=recipe.optimizer,
        router=recipe.router,
        shardings=layout(shared.weights),
        overlap=recipe.precision.overlap,
    )


def steps(shared: Shared, stage: str, state: TrainState, start: int, cursor: Mapping[str, Any]) -> Iterator[Step]:
    """The stage's steps from ``start`` + 1; ``cursor`` is that of step ``start``, or empty."""
    return STAGES[stage](shared, state, start, cursor)


def scorer(shared: Shared) -> Scorer:
    """Scores pairs that are held out."""
    settings = shared.recipe.reward_model
    return Scorer(shared.graph, settings.microbatch_rows, settings.length, shared.mesh)


def _batches(shared: Shared, stage: str, state: Any, **changed: Any) -> data.Batches:
    """Of a stage's records; ``changed`` settings take the place of its section's."""
    settings = getattr(shared.recipe, stage)
    told: dict[str, Any] = {name: getattr(settings, name) for name in ("rows", "length", "on_too_long")} | changed
    kind = {"sft": data.CONVERSATIONS, "distill": distill.RESPONSES}.get(stage, pairs.PAIRS)
    source, seed = distill.kept(shared.folder) if stage == "distill" else shared.sources[stage], shared.recipe.seed
    return data.batches(source, shared.chat, seed=seed, state=state, kind=kind, section=stage, **told)


def _from_records(stage: str, train: Callable[..., Iterator[Step]]) -> Callable[..., Iterator[Step]]:
    def begin(shared: Shared, state: TrainState, start: int, cursor: Mapping[str, Any]) -> Iterator[Step]:
        batches, settings = _batches(shared, stage, cursor.get("data")), getattr(shared.recipe, stage)
        return train(settings, optimizing(shared, stage), shared.graph, state, batches, shared.mesh, start)

    return begin


def _rl(shared: Shared, state: TrainState, start: int, cursor: Mapping[str, Any]) -> Iterator[Step]:
    recipe, settings = shared.recipe, shared.recipe.rl
    sft_data = None
    if settings.objective.ptx_weight:
        more = dict(rows=settings.objective.ptx_rows, length=settings.length, on_too_long="skip")
        sft_data = _batches(shared, "sft", cursor.get("sft_data"), **more)
    curriculum = Curriculum(
        recipe.tasks.names or tasks.TASKS,
        recipe.tasks.max_level,
        settings.promote_at,
        recipe.seed,
        effort=settings.effort,
        retire_at=settings.retire_at,
        mixture=mixture(recipe.tasks.weights, recipe.tasks.schedule),
    )
    if cursor:
        curriculum.restore(cursor["curriculum"])
    limits, segments = shared.engine.limits, recipe.episodes.segments if _flies(recipe) else 1
    replayed = settings.debug == "train_only"
    judging = None if replayed else make_judging(recipe, shared.chat, shared.mesh, shared.workdir)
    refresh = _refresh(recipe, judging)
    longest = max(limits.positions, refresh.engine.limits.positions if refresh else 0)
    with contextlib.ExitStack() as held:
        if judging and judging.endpoint:
            held.enter_context(judging.endpoint)
        yield from rl.train(
            settings,
            optimizing(shared, "rl"),
            shared.graph,
            state,
            _collector(shared, curriculum, cursor, held, judging),
            curriculum,
            shared.chat,
            rl.Preparation(settings, longest, limits.max_response, shared.mesh, segments),
            sft_data,
            start=start,
            draws=cursor.get("draws", 0),
            used=cursor.get("tokens", 0),
            samples_per_step=recipe.run.samples_per_step,
            refresh=refresh,
        )


def _flies(recipe: Recipe) -> bool:
    return bool(recipe.rl.carry_over or any(worlds.is_world(name) for name in recipe.tasks.names))


def _refresh(recipe: Recipe, judging: Judging | None) -> Refresh | None:
    if not recipe.rl.judge.refresh or judging is None or judging.engine is None:
        return None
    key = jax.random.fold_in(jax.random.key(recipe.seed), 2)
    return Refresh(recipe.rl, judging.engine, judging.chat, judging.rubrics, key, judging.shown)


def _collector(
    shared: Shared,
    curriculum: Curriculum,
    cursor: Mapping[str, Any],
    held: contextlib.ExitStack,
    judging: Judging | None,
) -> Collector:
    """What the recipe collects by, where the cursor says it was; what has to be closed is ``held``."""
    recipe, settings, chat = shared.recipe, shared.recipe.rl, shared.chat
    heat = _heat(shared) if settings.sampling.moves else None
    if heat and "heat" in cursor:
        heat.restore(cursor["heat"])
    folder = Path(settings.rollouts) if settings.rollouts else shared.folder / "rollouts"
    if settings.debug == "train_only":
        return Replayed(folder)
    scoring = Scoring(settings.reward, Scorer(shared.graph, settings.microbatch_rows, settings.length, shared.mesh))
    if "scoring" in cursor:
        scoring.restore(cursor["scoring"])
    if _flies(recipe):
        flight = _flight(shared, curriculum, cursor.get("flight", ()), scoring, judging)
        held.enter_context(contextlib.closing(flight))
        collector: Collector = InFlight(flight, heat)
    else:
        key = jax.random.fold_in(jax.random.key(recipe.seed), 1)
        collector = AtOnce(settings, recipe.tasks, shared.engine, chat, curriculum, key, scoring, judging, heat)
    return Recorded(collector, folder, chat) if settings.debug == "rollout_only" else collector


def _heat(shared: Shared) -> Heat:
    """The stage's temperature, judged by questions of its own tasks that no draw reaches."""
    recipe, sampling = shared.recipe, shared.recipe.rl.sampling
    probes = [in_turn(recipe.tasks, number, PROBES) for number in range(sampling.probes if sampling.plateau else 0)]

    def measure(weights: nnx.State, temperature: float) -> float:
        told: dict[str, Any] = {"system": recipe.tasks.system, "episodes": recipe.episodes}
        return evaluate(shared.engine, weights, shared.chat, probes, temperature=temperature, **told).overall

    return Heat(sampling, recipe.rl.steps, measure)


def _flight(
    shared: Shared, curriculum: Curriculum, state: Sequence[Any], scoring: Scoring, judging: Judging | None
) -> Flight:
    recipe = shared.recipe
    if jax.process_count() > 1:
        raise UserError("worlds in tasks.names and rl.carry_over work in one process, and these are several")
    flight = Flight(
        recipe.rl,
        recipe.episodes,
        recipe.tasks,
        shared.engine,
        shared.chat,
        curriculum,
        recipe.seed,
        scoring=scoring,
        judging=judging,
        beside=recipe.rollout.beside,
    )
    flight.restore(state)
    return flight


STAGES: dict[str, Callable[..., Iterator[Step]]] = {
    "sft": _from_records("sft", sft.train),
    "reward_model": _from_records("reward_model", reward_model.train),
    "dpo": _from_records("dpo", preference.train),
    "distill": _from_records("distill", sft.train),
    "rl": _rl,
}
