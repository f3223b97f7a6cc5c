"""A recipe from its seed to a post-trained model: the stages in order, each followed by a measure on what is held out.

That is pass@1 on problems where the policy learned, and the order of preference pairs where a reward model did.

The stages know nothing of files; this module keeps the run: it logs every step, saves checkpoints, stops when asked
to, and goes on where a stopped run left off.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from posttrain_jax.data import tasks
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.models.decoder import abstract, materialise
from posttrain_jax.run import dump, report
from posttrain_jax.run.checkpoint import Checkpointer
from posttrain_jax.run.metrics import Recorder, write_json_atomic
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.run.screen import Screen
from posttrain_jax.run.stop import EXIT_STOPPED, StopSignal
from posttrain_jax.stages import catalogue, reward_model
from posttrain_jax.stages.evaluation import Score, evaluate
from posttrain_jax.stages.experience import sample
from posttrain_jax.stages.setup import make_chat, make_engine, make_model, training_mesh
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
        records = catalogue.sources(recipe)  # before anything is computed: a broken line is told at once
        self.engine = make_engine(recipe, self.chat, mesh=self.mesh)
        self.problems = worlds.heldout(
            recipe.tasks.names or tasks.TASKS, recipe.tasks.max_level, recipe.evaluation.problems, recipe.tasks.seed
        )

        model = make_model(recipe)
        graph, weights = abstract(model, self.mesh)
        self.shared = catalogue.Shared(recipe, self.mesh, self.chat, self.engine, graph, weights, records, workdir)
        self.progress, self.restored = self._resume()
        self.recorder = Recorder(workdir, resume=self.progress.offsets)
        self.weights: Any = None  # the policy's
        self.reward: Any = None  # the reward model's, once there is one
        if self.restored is not None:
            self.weights, self.reward = catalogue.kept(self.progress.stage, self.restored)
        elif recipe.weights:
            self.weights = newest_weights(Path(recipe.weights), weights, screen.warn, cast=True).arrays
        else:
            self.weights = materialise(model, weights)

    def go(self) -> None:
        """Every stage that is not finished yet, then the summary."""
        recipe, progress = self.recipe, self.progress
        self.screen.header(self._facts())
        score = None
        if "base" not in progress.heldout:
            score = self._evaluate("base", self.weights)
        for stage in recipe.stages:
            if stage in progress.heldout or stage in progress.pair_accuracy:
                continue
            state = self._train(stage)
            self.weights, self.reward = catalogue.kept(stage, state)
            if stage == "reward_model":
                self._judge_pairs(stage)
            else:
                score = self._evaluate(stage, self.weights)
        if score is None:
            score = self._score(self.weights)
        self._summarise(score)

    def _resume(self) -> tuple[Progress, TrainState | None]:
        def expected(saved: dict[str, Any]) -> TrainState:
            stage = saved["stage"]
            return catalogue.filed(stage, abstract_state(*catalogue.parts(self.shared, stage)))

        restored = self.checkpointer.restore(expected)
        if restored is None:
            return Progress(), None
        progress = Progress(**restored.progress)
        self.screen.say(f"resumed at {progress.stage} step {progress.step}: checkpoint {restored.step} verified")
        return progress, catalogue.unfiled(progress.stage, restored.arrays)

    def _train(self, stage: str) -> TrainState:
        progress = self.progress
        if self.restored is not None and progress.stage == stage:
            state = self.restored
        else:
            state = fresh_state(*catalogue.parts(self.shared, stage, self.weights, self.reward))
            progress.stage, progress.step, progress.cursor = stage, 0, {}
        self.weights = self.reward = self.restored = None
        steps = catalogue.steps(self.shared, stage, state, progress.step, progress.cursor)
        return self._follow(stage, steps, getattr(self.recipe, stage).steps, state)

    def _follow(self, stage: str, steps: Iterator[Step], total: int, state: TrainState) -> TrainState:
        """Works through a stage's steps, logging each, and saving when it is time to or when asked to stop.

        A step's numbers are read after the next step was started, so reading never makes the device wait.
        """
        every = self.recipe.run.checkpoint_every
        measured = self.recipe.evaluation.every if stage == "rl" else 0
        unread: tuple[Step, float] | None = None
        with self.screen.stage(stage, total, self.progress.step) as bar:
            before = time.perf_counter()
            for step in steps:
                now = time.perf_counter()
                if unread:
                    self._log(stage, *unread, bar)
                state, unread, before = step.state, (step, now - before), now
                stopping = self.stop.agreed(step.number)
                last = step.last or step.number == total
                saving = stopping or last or step.number % every == 0
                measuring = measured and not last and step.number % measured == 0
                if saving or measuring:
                    self._log(stage, *unread, bar)
                    unread = None
                if measuring:
                    score = self._score(catalogue.kept(stage, state)[0])
                    self.recorder.metrics(stage, step.number, {"heldout": score.overall})
                    before = time.perf_counter()  # a step's seconds are its own
                if saving:
                    self._save(stage, step, now)
                if stopping:
                    self.checkpointer.wait()
                    raise Stopped
        return state

    def _log(self, stage: str, step: Step, seconds: float, bar: Any) -> None:
        metrics = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
        if self.first_step_seconds is None:
            self.first_step_seconds = time.perf_counter() - self.began
        timing = {"seconds": seconds, "tokens_per_second": step.tokens / max(seconds, 1e-9)}
        self.recorder.metrics(stage, step.number, metrics)
        self.recorder.timing(stage, step.number, timing)
        self.recorder.samples(stage, step.number, step.samples)
        bar.update(step.number, {**metrics, **timing})
        self.progress.seconds[stage] = self.progress.seconds.get(stage, 0.0) + seconds
        alarm, apart = self.recipe.rl.mismatch_alarm, metrics.get("mismatch", 0.0)
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
                f"{stage}.optimizer.learning_rate is the usual mend."
            )

    def _save(self, stage: str, step: Step, now: float) -> None:
        progress = self.progress
        progress.stage, progress.step, progress.cursor = stage, step.number, step.cursor
        progress.offsets = self.recorder.offsets()
        earlier = self.recipe.stages[: self.recipe.stages.index(stage)]
        number = sum(getattr(self.recipe, name).steps for name in earlier) + step.number
        self.checkpointer.save(number, catalogue.filed(stage, step.state), dataclasses.asdict(progress))

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

    def _judge_pairs(self, stage: str) -> None:
        """How many held-out pairs the reward model puts in the right order; the policy has not changed."""
        settings, source = self.recipe.reward_model, self.shared.sources[catalogue.HELDOUT]
        pairs = reward_model.heldout(source, self.chat, settings)
        share = reward_model.accuracy(catalogue.scorer(self.shared), self.reward, pairs)
        self.progress.pair_accuracy[stage] = share
        self.recorder.metrics("heldout_pairs", 0, {"accuracy": share})
        self.screen.say(f"held-out pairs in the right order ({stage}): {share:.3f} of {len(pairs)}")

    def _summarise(self, score: Score) -> None:
        progress, recipe = self.progress, self.recipe
        chosen = sorted(score.trajectories, key=lambda t: not t.verdict.correct)
        shown = [sample(self.chat, "heldout", 0, t) for t in (chosen[:2] + chosen[-1:] if len(chosen) > 2 else chosen)]
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
