"""A recipe from its seed to a post-trained model: the stages in order, each followed by a held-out evaluation.

The stages know nothing of files; this module keeps the run: it logs every step, saves checkpoints, stops when asked
to, and goes on where a stopped run left off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from posttrain_jax.data import pipeline as data
from posttrain_jax.data import sources, tasks
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.models.decoder import abstract, materialise
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.run import dump, report
from posttrain_jax.run.checkpoint import Checkpointer
from posttrain_jax.run.metrics import Recorder, write_json_atomic
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.run.screen import Screen
from posttrain_jax.run.stop import EXIT_STOPPED, StopSignal
from posttrain_jax.stages import rl, sft
from posttrain_jax.stages.critic import split_critic, with_critic
from posttrain_jax.stages.evaluation import Score, evaluate
from posttrain_jax.stages.experience import sample
from posttrain_jax.stages.flight import Flight
from posttrain_jax.stages.judging import make_judging
from posttrain_jax.stages.optimizing import Optimizing, make_optimizing
from posttrain_jax.stages.setup import make_chat, make_engine, make_model
from posttrain_jax.stages.step import Step, TrainState, abstract_state, fresh_state, layout
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
        self.mesh = make_mesh(**dataclasses.asdict(recipe.mesh))
        self.chat = make_chat(recipe)
        self._worlds = [name for name in recipe.tasks.names if worlds.is_world(name)]
        self.source = sources.open(  # before anything is computed: a broken line is told at once
            recipe.sft.data if "sft" in recipe.stages or recipe.rl.objective.ptx_weight else "tasks",
            names=recipe.tasks.names or tasks.TASKS,
            max_level=recipe.tasks.max_level,
            system=recipe.tasks.system,
            seed=recipe.tasks.seed,
            careful_share=recipe.sft.careful_share,
            demonstrations={name: partial(worlds.demonstration, name) for name in self._worlds},
        )
        self.engine = make_engine(recipe, self.chat, mesh=self.mesh)
        self.problems = worlds.heldout(
            recipe.tasks.names or tasks.TASKS, recipe.tasks.max_level, recipe.evaluation.problems, recipe.tasks.seed
        )

        model = make_model(recipe)
        self.graph, self.abstract_weights = abstract(model, self.mesh)
        self.progress, self.restored = self._resume()
        self.recorder = Recorder(workdir, resume=self.progress.offsets)
        if self.restored is not None:
            self.weights: Any = split_critic(self.restored.weights)[0]
        elif recipe.weights:
            self.weights = newest_weights(Path(recipe.weights), self.abstract_weights, screen.warn, cast=True).arrays
        else:
            self.weights = materialise(model, self.abstract_weights)

    def go(self) -> None:
        """Every stage that is not finished yet, then the summary."""
        recipe, progress = self.recipe, self.progress
        self.screen.header(self._facts())
        score = None
        if "base" not in progress.heldout:
            score = self._evaluate("base", self.weights)
        for stage in recipe.stages:
            if stage in progress.heldout:
                continue
            self.weights, _ = split_critic(self._train(stage).weights)
            self.restored = None
            score = self._evaluate(stage, self.weights)
        if score is None:
            score = self._score(self.weights)
        self._summarise(score)

    def _resume(self) -> tuple[Progress, TrainState | None]:
        restored = self.checkpointer.restore(lambda saved: abstract_state(*self._parts(saved["stage"])))
        if restored is None:
            return Progress(), None
        progress = Progress(**restored.progress)
        self.screen.say(f"resumed at {progress.stage} step {progress.step}: checkpoint {restored.step} verified")
        return progress, restored.arrays

    def _optimizing(self, stage: str) -> Optimizing:
        recipe = self.recipe
        pace, updates = recipe.sft.optimizer, recipe.sft.steps
        if stage == "rl":
            pace, updates = recipe.rl.optimizer, recipe.rl.steps * recipe.rl.minibatches
        where = layout(self.abstract_weights)
        return make_optimizing(
            pace,
            updates,
            recipe.model,
            algorithm=recipe.optimizer,
            router=recipe.router,
            shardings=where,
            overlap=recipe.precision.overlap,
        )

    def _parts(self, stage: str, weights: Any = None) -> tuple:
        """What a stage's state is made of: weights (abstract ones if none are given), optimizer, mesh, reference."""
        policy = self.abstract_weights if weights is None else weights
        objective, trained, reference = self.recipe.rl.objective, policy, None
        if stage == "rl" and objective.name == "ppo":
            trained = jax.eval_shape(with_critic, policy) if weights is None else with_critic(policy)
        if stage == "rl" and objective.kl_weight:
            reference = policy
        return trained, self._optimizing(stage).optimizer, self.mesh, reference

    def _train(self, stage: str) -> TrainState:
        progress = self.progress
        if self.restored is not None and progress.stage == stage:
            state = self.restored
        else:
            state = fresh_state(*self._parts(stage, self.weights))
            progress.stage, progress.step, progress.cursor = stage, 0, {}
        self.weights = self.restored = None
        with contextlib.ExitStack() as held:
            steps, total = self._steps(stage, state, held)
            return self._follow(stage, steps, total, state)

    def _steps(self, stage: str, state: TrainState, held: contextlib.ExitStack) -> tuple[Iterator[Step], int]:
        recipe, cursor, start = self.recipe, self.progress.cursor, self.progress.step
        optimizing = self._optimizing(stage)
        if stage == "sft":
            batches = self._sft_data(recipe.sft.rows, recipe.sft.length, recipe.sft.on_too_long, cursor.get("data"))
            return sft.train(recipe.sft, optimizing, self.graph, state, batches, self.mesh, start), recipe.sft.steps
        objective = recipe.rl.objective
        sft_data = None
        if objective.ptx_weight:
            sft_data = self._sft_data(objective.ptx_rows, recipe.rl.length, "skip", cursor.get("sft_data"))
        curriculum = Curriculum(
            recipe.tasks.names or tasks.TASKS, recipe.tasks.max_level, recipe.rl.promote_at, recipe.seed
        )
        if cursor:
            curriculum.restore(cursor["curriculum"])
        flight = None
        if recipe.rl.carry_over or self._worlds:
            if recipe.rl.judge.name != "none":
                raise UserError("rl.judge works beside tasks of one turn and rl.carry_over=0 alone")
            if jax.process_count() > 1:
                raise UserError("worlds in tasks.names and rl.carry_over work in one process, and these are several")
            flight = Flight(recipe.rl, recipe.episodes, recipe.tasks, self.engine, self.chat, curriculum, recipe.seed)
            held.enter_context(contextlib.closing(flight))
            flight.restore(cursor.get("flight", ()))
        steps = rl.train(
            recipe.rl,
            optimizing,
            recipe.tasks,
            self.graph,
            state,
            self.engine,
            self.chat,
            curriculum,
            sft_data,
            self.mesh,
            key=jax.random.fold_in(jax.random.key(recipe.seed), 1),
            start=start,
            draws=cursor.get("draws", 0),
            samples_per_step=recipe.run.samples_per_step,
            flight=flight,
            judging=make_judging(recipe, self.chat, self.mesh, self.workdir),
        )
        return steps, recipe.rl.steps

    def _sft_data(self, rows: int, length: int, on_too_long: str, state: Any) -> data.Batches:
        seed = self.recipe.seed
        return data.batches(
            self.source, self.chat, rows=rows, length=length, seed=seed, on_too_long=on_too_long, state=state
        )

    def _follow(self, stage: str, steps: Iterator[Step], total: int, state: TrainState) -> TrainState:
        """Works through a stage's steps, logging each, and saving when it is time to or when asked to stop.

        A step's numbers are read after the next step was started, so reading never makes the device wait.
        """
        every = self.recipe.run.checkpoint_every
        unread: tuple[Step, float] | None = None
        with self.screen.stage(stage, total, self.progress.step) as bar:
            before = time.perf_counter()
            for step in steps:
                now = time.perf_counter()
                if unread:
                    self._log(stage, *unread, bar)
                state, unread, before = step.state, (step, now - before), now
                stopping = self.stop.agreed(step.number)
                if stopping or step.number % every == 0 or step.number == total:
                    self._log(stage, *unread, bar)
                    unread = None
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
        done = {"sft": self.recipe.sft.steps, "rl": self.recipe.rl.steps}
        earlier = self.recipe.stages[: self.recipe.stages.index(stage)]
        number = sum(done[name] for name in earlier) + step.number
        self.checkpointer.save(number, step.state, dataclasses.asdict(progress))

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

    def _summarise(self, score: Score) -> None:
        progress, recipe = self.progress, self.recipe
        chosen = sorted(score.trajectories, key=lambda t: not t.verdict.correct)
        shown = [sample(self.chat, "heldout", 0, t) for t in (chosen[:2] + chosen[-1:] if len(chosen) > 2 else chosen)]
        summary = {
            "heldout": progress.heldout,
            "per_task": progress.per_task,
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
