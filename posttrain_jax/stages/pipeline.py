"""A recipe from its seed to a post-trained model: its phases in order, each followed by a measure on what is held out.

That is pass@1 on problems where the policy learned, and the order of preference pairs where a reward model did.

The stages know nothing of files; this module keeps the run: it logs every step, saves checkpoints, stops when asked
to, and goes on where a stopped run left off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import platform
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from posttrain_jax.data import tasks
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.models.decoder import abstract, materialise
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.run import dump, phases, report
from posttrain_jax.run.checkpoint import Checkpointer
from posttrain_jax.run.metrics import Recorder, write_json_atomic
from posttrain_jax.run.phases import Phase
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.run.screen import Screen
from posttrain_jax.run.stop import EXIT_STOPPED, StopSignal
from posttrain_jax.stages import catalogue, distill, reward_model
from posttrain_jax.stages.evaluation import Score, evaluate
from posttrain_jax.stages.experience import sample
from posttrain_jax.stages.setup import make_chat, make_engine, make_limits, make_model, training_mesh
from posttrain_jax.stages.step import Step, TrainState, abstract_state, fresh_state
from posttrain_jax.stages.trained import newest_weights


class Stopped(Exception):
    """Asked to stop; everything done so far is in a checkpoint."""


@dataclasses.dataclass
class Progress:
    """Where a run stands: saved with every checkpoint, beside the arrays."""

    stage: str = ""
    step: int = 0
    cursor: dict[str, Any] = dataclasses.field(default_factory=dict)
    offsets: dict[str, int] | None = None
    heldout: dict[str, float] = dataclasses.field(default_factory=dict)
    per_task: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    pair_accuracy: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def run(recipe: Recipe, workdir: Path) -> int:
    """Runs the recipe to its end, from wherever ``workdir`` says it stands.

    Returns:
      The exit code: 0 when finished, `EXIT_STOPPED` when stopped by a signal with everything saved.

    Raises:
      UserError: bad input, a damaged workdir without a good checkpoint, or training that diverged.
    """
    screen = Screen(quiet=jax.process_index() != 0)
    with StopSignal() as stop:
        checkpointer = Checkpointer(workdir / "checkpoints", keep=recipe.run.keep, log=screen.warn)
        try:
            Run(recipe, workdir, screen, stop, checkpointer).go()
        except Stopped:
            screen.say(f"stopped and saved; the same command goes on from here ({workdir})")
            return EXIT_STOPPED
        finally:
            checkpointer.close()
    return 0


class Run:
    """One run's parts, and the order in which they act."""

    def __init__(self, recipe: Recipe, workdir: Path, screen: Screen, stop: StopSignal, checkpointer: Checkpointer):
        self.recipe, self.workdir, self.screen = recipe, workdir, screen
        self.stop, self.checkpointer = stop, checkpointer
        self.began = time.perf_counter()
        self.first_step_seconds: float | None = None
        self.mesh = training_mesh(recipe)
        self.chat = make_chat(recipe)
        self.phases = {phase.name: phase for phase in phases.of(recipe)}
        # before anything is computed: a broken line is told at once
        records = {name: catalogue.sources(phase.recipe, phase.kind, self.chat) for name, phase in self.phases.items()}
        for line in dict.fromkeys(line for found in records.values() for line in catalogue.remarks(found)):
            screen.warn(line)
        self.engine = make_engine(recipe, self.chat, mesh=self.mesh)
        self.problems = worlds.heldout(
            recipe.tasks.names or tasks.TASKS, recipe.tasks.max_level, recipe.evaluation.problems, recipe.tasks.seed
        )

        model = make_model(recipe)
        graph, weights = abstract(model, self.mesh)
        self.fresh = partial(materialise, model, weights)
        self.shared = {
            name: catalogue.Shared(
                recipe=phase.recipe,
                mesh=self.mesh,
                chat=self.chat,
                engine=self._engine(phase.recipe),
                graph=graph,
                weights=weights,
                sources=records[name],
                workdir=workdir,
                folder=self._folder(name) if name in recipe.phases else workdir,
            )
            for name, phase in self.phases.items()
        }
        self.abstract = weights
        self.progress, self.restored = self._resume()
        self.recorder = Recorder(workdir, resume=self.progress.offsets)
        self.weights: Any = None  # the policy's
        self.reward: Any = None  # the reward model's, once there is one
        if self.restored is not None:
            self.weights, self.reward = catalogue.kept(self.phases[self.progress.stage].kind, self.restored)
        else:
            self.weights = self._weights_of(phases.BASE)

    def go(self) -> None:
        """Every stage that is not finished yet, then the summary."""
        progress, wanted = self.progress, phases.asked_for(tuple(self.phases.values()))
        self.screen.header(self._facts())
        score = None
        if "base" not in progress.heldout:
            score = self._evaluate("base", self.weights)
        for name, phase in self.phases.items():
            if name in progress.heldout or name in progress.pair_accuracy:
                continue
            state = self._train(phase)
            self.weights, self.reward = catalogue.kept(phase.kind, state)
            del state
            if name in wanted:
                self._keep(phase)
            if phase.kind == "reward_model":
                self._judge_pairs(phase)
            else:
                score = self._evaluate(name, self.weights)
        if score is None:
            score = self._score(self.weights)
        self._summarise(score)

    def _engine(self, recipe: Recipe) -> Engine:
        """The run's, unless a phase's recipe asks for another."""
        own, of_all = (
            (each.rollout, make_limits(each, self.chat, each.rollout.banks)) for each in (recipe, self.recipe)
        )
        return self.engine if own == of_all else make_engine(recipe, self.chat, mesh=self.mesh)

    def _folder(self, name: str) -> Path:
        return self.workdir / "phases" / name

    def _resume(self) -> tuple[Progress, TrainState | None]:
        def expected(saved: dict[str, Any]) -> TrainState:
            phase = self.phases[saved["stage"]]
            return catalogue.filed(phase.kind, abstract_state(*catalogue.parts(self.shared[phase.name], phase.kind)))

        restored = self.checkpointer.restore(expected)
        if restored is None:
            return Progress(), None
        progress = Progress(**restored.progress)
        self.screen.say(f"resumed at {progress.stage} step {progress.step}: checkpoint {restored.step} verified")
        return progress, catalogue.unfiled(self.phases[progress.stage].kind, restored.arrays)

    def _weights_of(self, name: str) -> nnx.State:
        """Those that a phase ended with and `_keep` kept, or those that the run begins with."""
        if name == phases.BASE and not self.recipe.weights:
            return self.fresh()
        where = Path(self.recipe.weights) if name == phases.BASE else self._folder(name)
        return newest_weights(where, self.abstract, self.screen.warn, cast=name == phases.BASE).arrays

    def _keep(self, phase: Phase) -> None:
        """Keeps the policy's weights beside the checkpoints, for phases that ask for them."""
        keeper = Checkpointer(self._folder(phase.name) / "checkpoints", keep=1, log=self.screen.warn)
        with contextlib.closing(keeper):
            keeper.save(phase.steps, {"weights": self.weights}, {"stage": phase.name, "step": phase.steps})

    def _train(self, phase: Phase) -> TrainState:
        progress, shared = self.progress, self.shared[phase.name]
        if self.restored is not None and progress.stage == phase.name:
            state = self.restored
        else:
            for teacher in phase.teachers:
                self._ask(phase, self.phases[teacher])
            if phase.start:
                self.weights = None
                self.weights = self._weights_of(phase.start)
            state = fresh_state(*catalogue.parts(shared, phase.kind, self.weights, self.reward))
            progress.stage, progress.step, progress.cursor = phase.name, 0, {}
        self.weights = self.reward = self.restored = None
        steps = catalogue.steps(shared, phase.kind, state, progress.step, progress.cursor)
        return self._follow(phase, steps, state)

    def _ask(self, phase: Phase, teacher: Phase) -> None:
        """Lets a teacher answer, from where its answers end."""
        settings, shared, numbers = phase.settings, self.shared[phase.name], {}
        engine = self.shared[teacher.name].engine

        def weights() -> nnx.State:
            return engine.load(self._weights_of(teacher.name))

        with self.screen.stage(f"{phase.name}: {teacher.name}", settings.prompts, kind="answering") as bar:
            for done, numbers in distill.answer(
                settings, teacher, engine, weights, self.chat, shared.folder, phase.recipe.seed
            ):
                bar.update(done, numbers)
                if self.stop.agreed(done):
                    raise Stopped
        self.recorder.metrics(phase.name, 0, {f"{key}/{teacher.name}": value for key, value in numbers.items()})

    def _follow(self, phase: Phase, steps: Iterator[Step], state: TrainState) -> TrainState:
        """Works through a stage's steps, logging each, and saving when it is time to or when asked to stop.

        A step's numbers are read after the next step was started, so reading never makes the device wait.
        """
        every, total = self.recipe.run.checkpoint_every, phase.steps
        measured = phase.recipe.evaluation.every if phase.kind == "rl" else 0
        budget = phase.settings.tokens if phase.kind == "rl" else 0
        done = self.progress.cursor.get("tokens", 0) if budget else self.progress.step
        unread: tuple[Step, float] | None = None
        with self.screen.stage(phase.name, budget or total, done, phase.kind, "token" if budget else "step") as bar:
            before = time.perf_counter()
            for step in steps:
                now = time.perf_counter()
                if unread:
                    self._log(phase, *unread, bar)
                state, unread, before = step.state, (step, now - before), now
                stopping = self.stop.agreed(step.number)
                last = step.last or step.number == total
                saving = stopping or last or step.number % every == 0
                measuring = measured and not last and step.number % measured == 0
                if saving or measuring:
                    self._log(phase, *unread, bar)
                    unread = None
                if measuring:
                    score = self._score(catalogue.kept(phase.kind, state)[0])
                    self.recorder.metrics(phase.name, step.number, {"heldout": score.overall})
                    before = time.perf_counter()  # a step's seconds are its own
                if saving:
                    self._save(phase, step)
                if stopping:
                    self.checkpointer.wait()
                    raise Stopped
        return state

    def _log(self, phase: Phase, step: Step, seconds: float, bar: Any) -> None:
        stage = phase.name
        metrics = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
        if self.first_step_seconds is None:
            self.first_step_seconds = time.perf_counter() - self.began
        timing = {"seconds": seconds, "tokens_per_second": step.tokens / max(seconds, 1e-9)}
        self.recorder.metrics(stage, step.number, metrics)
        self.recorder.timing(stage, step.number, timing)
        self.recorder.samples(stage, step.number, step.samples)
        bar.update(step.number, {**metrics, **timing})
        self.progress.seconds[stage] = self.progress.seconds.get(stage, 0.0) + seconds
        alarm, apart = phase.recipe.rl.mismatch_alarm, metrics.get("mismatch", 0.0)
        if alarm and apart > alarm:
            self.screen.warn(
                f"{stage} step {step.number}: sampler and trainer disagree by {apart:.3g} nats a token on average"
                f" (99 % below {metrics['mismatch_p99']:.3g}, at most {metrics['mismatch_max']:.3g};"
                f" rl.mismatch_alarm={alarm:g})"
            )
        bad = int(metrics.get("bad_in_a_row", 0))
        if bad:
            self.screen.warn(f"{stage} step {step.number}: not finite, update skipped ({bad} in a row)")
        if bad >= self.recipe.run.max_bad_steps:
            path = dump.write(self.workdir, stage, step.number, metrics, step.batch, step.state.weights)
            raise UserError(
                f"{stage} step {step.number}: {bad} updates in a row were not finite. The batch and the weights' norms "
                f"are in {path}; the last good checkpoint is in {self.workdir / 'checkpoints'}. A lower "
                f"{phase.kind}.optimizer.learning_rate is the usual mend."
            )

    def _save(self, phase: Phase, step: Step) -> None:
        progress = self.progress
        progress.stage, progress.step, progress.cursor = phase.name, step.number, step.cursor
        progress.offsets = self.recorder.offsets()
        earlier = itertools.takewhile(lambda each: each is not phase, self.phases.values())
        number = sum(each.steps for each in earlier) + step.number
        self.checkpointer.save(number, catalogue.filed(phase.kind, step.state), dataclasses.asdict(progress))

    def _score(self, weights: nnx.State) -> Score:
        recipe, loaded = self.recipe, self.engine.load(weights)
        return evaluate(
            self.engine, loaded, self.chat, self.problems, system=recipe.tasks.system, episodes=recipe.episodes
        )

    def _evaluate(self, stage: str, weights: nnx.State) -> Score:
        score = self._score(weights)
        position = len(self.progress.heldout)
        self.progress.heldout[stage] = score.overall
        self.progress.per_task[stage] = score.per_task
        self.recorder.metrics("heldout", position, {"pass@1": score.overall, **score.per_task})
        self.screen.say(f"held-out pass@1 ({stage}): {score.overall:.3f} on {len(self.problems)} problems")
        return score

    def _judge_pairs(self, phase: Phase) -> None:
        """How many held-out pairs the reward model puts in the right order; the policy has not changed."""
        shared, position = self.shared[phase.name], len(self.progress.pair_accuracy)
        pairs = reward_model.heldout(shared.sources[catalogue.HELDOUT], self.chat, phase.settings)
        share = reward_model.accuracy(catalogue.scorer(shared), self.reward, pairs)
        self.progress.pair_accuracy[phase.name] = share
        self.recorder.metrics("heldout_pairs", position, {"accuracy": share})
        self.screen.say(f"held-out pairs in the right order ({phase.name}): {share:.3f} of {len(pairs)}")

    def _summarise(self, score: Score) -> None:
        progress, recipe = self.progress, self.recipe
        chosen = sorted(score.trajectories, key=lambda t: not t.verdict.correct)
        chosen = chosen[:2] + chosen[-1:] if len(chosen) > 2 else chosen
        shown = [{"stage": "heldout", "step": 0, **sample(self.chat, trajectory)} for trajectory in chosen]
        summary = {
            "heldout": progress.heldout,
            "per_task": progress.per_task,
            "pair_accuracy": progress.pair_accuracy,
            "seconds": {**progress.seconds, "total": time.perf_counter() - self.began},
            "first_step_seconds": self.first_step_seconds,
            "model": {"parameters": recipe.model.parameters, "active": recipe.model.active_parameters},
            "devices": self._facts()["devices"],
            "versions": _versions(),
            "samples": shown,
        }
        self.checkpointer.wait()
        self.recorder.close()
        if jax.process_index() != 0:
            return
        write_json_atomic(self.workdir / "summary.json", summary)
        path = report.write(self.workdir)
        self.screen.summary({**summary, "workdir": str(self.workdir), "report": str(path)})

    def _facts(self) -> dict[str, Any]:
        devices = self.mesh.devices.flatten()
        return {
            "recipe": f"{self.recipe.name}, scale {self.recipe.scale}, seed {self.recipe.seed}",
            "devices": f"{len(devices)} × {devices[0].device_kind}"
            + (f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""),
            "mesh": {name: size for name, size in self.mesh.shape.items() if size > 1} or "one device",
            "parameters": self.recipe.model.parameters,
            "active": self.recipe.model.active_parameters,
            "stages": self.recipe.stages,
            "workdir": str(self.workdir),
        }


def _versions() -> dict[str, str]:
    import flax
    import optax

    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
    }
