"""Checkpoints that are whole or not there, and that are never loaded once damaged.

A step is one folder::

    checkpoints/400/arrays/            Orbax, OCDBT format; arrays by their path in the tree: "weights.embed"
                    digests-0.json     dtype, shape and digest of each array, one file a process
                    progress.json      where the run stands
                    manifest.json      size and digest of every file above

It is built as ``400.unfinished`` and gets its name when all of it is on the disk, so a folder with a number for a name
is complete. One that no longer matches its digests becomes ``400.damaged``, and the step before it is used.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from posttrain_jax.errors import UserError
from posttrain_jax.run import durable, integrity
from posttrain_jax.run.integrity import Damaged

FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota used up", errno.EFBIG: "file size limit reached"}


class Restored(NamedTuple):
    """A checkpoint's content."""

    step: int
    arrays: Any
    progress: Any


class Checkpointer:
    """Saves and restores the newest ``keep`` steps of a run, on a file system that all processes share.

    Args:
      directory: made when the first step is saved.
      keep: finished steps kept; older ones are deleted once a newer one is finished.
      log: called with one line for each damaged step that is met.
    """

    def __init__(self, directory: Path, keep: int = 2, log: Callable[[str], Any] = print):
        self._directory, self._keep, self._log = Path(directory).absolute(), keep, log
        logging.getLogger("absl").addFilter(_not_a_trace_of_orbax)
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, concurrent.futures.Future] | None = None
        self._sound: set[int] = set()  # steps whose files were checked since the last save
        self._tidy = False

    def save(self, step: int, arrays: Any, progress: Any) -> None:
        """Starts saving; the arrays may be donated or deleted as soon as this returns.

        Waits for the save before it. A step that is there already is replaced.

        Args:
          step: grows from save to save.
          arrays: a pytree of `jax.Array`.
          progress: JSON-able; keys of dictionaries come back as strings.

        Raises:
          UserError: this save, or the one before it, could not be written.
          TypeError: progress is not JSON-able.
        """
        self.wait()
        named, _ = _named(arrays)
        sealed, digests = integrity.seal(progress), integrity.seal(integrity.describe(named))
        folder = self._unfinished(step)
        self._sound.clear()
        with self._writing(step):
            if jax.process_index() == 0:
                self._tidy_up()
                folder.mkdir(parents=True)
                _check_space(folder, sum(array.nbytes for array in named.values()))
        with self._writing(step):
            durable.write(folder / f"digests-{jax.process_index()}.json", digests)
        with self._writing(step):
            self._orbax.save(folder / "arrays", args=ocp.args.PyTreeSave(named))
        self._pending = step, self._worker.submit(self._finish, step, sealed)

    def wait(self) -> None:
        """Returns when everything saved is on the disk.

        Raises:
          UserError: the last save could not be written; earlier checkpoints are intact.
        """
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        with self._writing(step):
            future.result()

    def close(self) -> None:
        """Waits, and lets go of threads; raises as `wait`."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            self._orbax.close()

    def latest_progress(self) -> tuple[int, Any] | None:
        """Step and progress of the newest step whose files are all sound: the one `restore` will take.

        Damaged steps before it are set aside, as by `restore`. (Only if an array was corrupted before it reached its
        file does `restore` take an older step than this: that shows no sooner than when the array is loaded.)

        Raises:
          UserError: there are only damaged steps.
        """
        for step in self._sound_steps():
            return step, self._progress(step)
        return self._nothing()

    def restore(self, abstract_arrays: Any) -> Restored | None:
        """The newest good step; None when none was ever saved. Damaged ones are renamed ``<step>.damaged`` and said.

        Args:
          abstract_arrays: the tree that was saved, of `jax.ShapeDtypeStruct` with the shardings to load to; or a
            function from the progress saved with it to that tree.

        Raises:
          UserError: an array's name, dtype or shape is not what was saved, or there are only damaged steps.
        """
        for step in self._sound_steps():
            progress = self._progress(step)
            wanted, structure = _named(abstract_arrays(progress) if callable(abstract_arrays) else abstract_arrays)
            arrays, problem = self._load(step, wanted, whole=True)
            if problem is None:
                return Restored(step, jax.tree.unflatten(structure, arrays), progress)
            self._set_aside(step, problem)
        return self._nothing()

    def restore_subtree(self, name: str, abstract: Any, cast: bool = False) -> Restored | None:
        """One branch of what was saved (``"weights"``), reading nothing else; for use while a run may be going on.

        Checks the arrays that it loads. A damaged step is said and passed over, and stays where it is.

        Args:
          name: the branch.
          abstract: its tree, of `jax.ShapeDtypeStruct` with the shardings to load to.
          cast: whether arrays saved in another dtype are cast to the one asked for.

        Raises:
          UserError: an array's name, shape or (without ``cast``) dtype is not what was saved, or there are only damaged
            steps.
        """
        self.wait()
        wanted, structure = _named(abstract, name)
        for step in self._steps():
            arrays, problem = self._load(step, wanted, whole=False, cast=cast)
            if problem is None:
                return Restored(step, jax.tree.unflatten(structure, arrays), self._progress(step))
            if self._folder(step).exists():  # a run that goes on may just have deleted it
                self._log(f"checkpoint {step} is damaged ({problem}) and is passed over: {self._folder(step)}")
        return self._nothing()

    # reading

    def _steps(self) -> list[int]:
        """Finished steps, newest first."""
        if not self._directory.is_dir():
            return []
        return sorted((int(path.name) for path in self._directory.iterdir() if path.name.isdecimal()), reverse=True)

    def _sound_steps(self) -> Iterator[int]:
        """Finished steps whose files are sound, newest first; damaged ones are set aside on the way."""
        self.wait()
        for step in self._steps():
            problem = None if step in self._sound else self._file_problem(step)
            if problem is None:
                self._sound.add(step)
                yield step
            else:
                self._set_aside(step, problem)

    def _file_problem(self, step: int) -> str | None:
        try:
            self._compare_files(step)
        except Damaged as damage:
            return integrity.agree(str(damage))
        return integrity.agree(None)

    def _compare_files(self, step: int) -> None:
        manifest = integrity.unseal(self._folder(step) / "manifest.json")
        if manifest["step"] != step:
            raise Damaged(f"manifest.json belongs to step {manifest['step']}")
        integrity.compare_files(self._folder(step), manifest["files"])
        self._progress(step)

    def _description(self, step: int) -> dict[str, dict[str, Any]]:
        files = integrity.unseal(self._folder(step) / "manifest.json")["files"]
        names = [name for name in files if name.startswith("digests-")]
        return integrity.merge(integrity.unseal(self._folder(step) / name) for name in names)

    def _progress(self, step: int) -> Any:
        return integrity.unseal(self._folder(step) / "progress.json")

    def _load(
        self, step: int, wanted: dict[str, jax.ShapeDtypeStruct], whole: bool, cast: bool = False
    ) -> tuple[list[jax.Array], str | None]:
        """The wanted arrays of a step, and what is damaged in it, on any process."""
        arrays: dict[str, jax.Array] = {}
        try:
            self._progress(step)
            saved = self._description(step)
            stored = {name: _as_saved(leaf, saved.get(name)) if cast else leaf for name, leaf in wanted.items()}
            integrity.expect(stored, saved, f"checkpoint {step}", whole)
            arrays = self._read(step, stored)
            integrity.compare(arrays, saved)
            arrays = {name: array.astype(wanted[name].dtype) for name, array in arrays.items()}
        except Damaged as damage:
            return [], integrity.agree(str(damage))
        return list(arrays.values()), integrity.agree(None)

    def _read(self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        how = {
            name: ocp.ArrayRestoreArgs(
                sharding=leaf.sharding or here, global_shape=leaf.shape, dtype=leaf.dtype, strict=True
            )
            for name, leaf in wanted.items()
        }
        args = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)
        try:
            arrays = self._orbax.restore(self._folder(step) / "arrays", args=args)
        except Exception:
            self._compare_files(step)  # if a file is to blame, this says which
            raise
        return {name: arrays[name] for name in wanted}

    def _set_aside(self, step: int, problem: str) -> None:
        old = self._folder(step)
        new, count = old.with_name(f"{step}.damaged"), 1
        while new.exists():
            count += 1
            new = old.with_name(f"{step}.damaged.{count}")
        integrity.agree(None)  # every process has chosen the name
        if jax.process_index() == 0:
            old.rename(new)
        integrity.agree(None)
        self._sound.discard(step)
        self._log(f"checkpoint {step} is damaged ({problem}): set aside as {new}, trying the one before it")

    def _nothing(self) -> None:
        """None when nothing was ever saved.

        Raises:
          UserError: something was, and is damaged.
        """
        damaged = sorted(self._directory.glob("*.damaged*")) if self._directory.is_dir() else []
        names = [path.name for path in damaged] or [str(step) for step in self._steps()]
        if names:
            raise UserError(
                f"no good checkpoint is left in {self._directory}: damaged {', '.join(names)}. Nothing was deleted: "
                f"put a sound copy of one back under its number, or start again with another --workdir"
            )

    # writing

    def _folder(self, step: int) -> Path:
        return self._directory / str(step)

    def _unfinished(self, step: int) -> Path:
        return self._directory / f"{step}.unfinished"

    def _finish(self, step: int, progress: bytes) -> None:
        """Completes a step once Orbax has written its arrays; runs beside the training."""
        self._orbax.wait_until_finished()
        if jax.process_index() != 0:
            return
        folder = self._unfinished(step)
        durable.write(folder / "progress.json", progress)
        durable.write(folder / "manifest.json", integrity.seal({"step": step, "files": integrity.digest_files(folder)}))
        durable.sync(folder)
        if self._folder(step).exists():
            self._delete(step)
        folder.rename(self._folder(step))
        durable.sync(self._directory)
        for old in self._steps()[self._keep :]:
            self._delete(old)

    def _delete(self, step: int) -> None:
        """A step disappears at once, and its files after that."""
        doomed = self._directory / f"{step}.deleted"
        self._folder(step).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _tidy_up(self) -> None:
        """Removes, once, what a killed run left half written or half deleted."""
        if not self._tidy and self._directory.is_dir():
            for path in [*self._directory.glob("*.unfinished"), *self._directory.glob("*.deleted")]:
                shutil.rmtree(path)
        self._tidy = True

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """A part of a save: when it fails on one process it fails on all, with one line."""
        failure = None
        try:
            yield
        except Exception as error:
            failure = error
        problem = integrity.agree(None if failure is None else self._failed(step, failure))
        if problem:
            if jax.process_index() == 0:  # what remains would fill the disk
                shutil.rmtree(self._unfinished(step), ignore_errors=True)
            raise UserError(problem) from failure

    def _failed(self, step: int, error: BaseException) -> str:
        """The line for a save that failed."""
        kept = ", ".join(map(str, sorted(self._steps())))
        return (
            f"checkpoint {step} could not be written in {self._directory} ({_reason(error)}). "
            + (f"Checkpoints {kept} are intact: " if kept else "There is no earlier one: ")
            + "mend that and run the same command again"
        )


def _named(tree: Any, *prefix: str) -> tuple[dict[str, Any], Any]:
    """The leaves of a tree by their dotted path, and its structure."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {}
    for path, leaf in paths:
        if path and path[-1] == jax.tree_util.GetAttrKey("value"):  # the inside of an nnx.Variable
            path = path[:-1]
        name = ".".join([*prefix, *(jax.tree_util.keystr((key,), simple=True) for key in path)])
        if name in leaves:
            raise ValueError(f"two arrays are named {name!r}")
        leaves[name] = leaf
    return leaves, structure


def _as_saved(leaf: jax.ShapeDtypeStruct, saved: dict[str, Any] | None) -> jax.ShapeDtypeStruct:
    """The leaf with the dtype of what was saved in its place."""
    return leaf if saved is None else jax.ShapeDtypeStruct(leaf.shape, saved["dtype"], sharding=leaf.sharding)


def _check_space(folder: Path, needed: int) -> None:
    """Fails before anything is written, where it can be known before."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free")


def _reason(error: BaseException) -> str:
    """What went wrong, short: the kind of full disk, or the first line of the message."""
    number, text = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error).partition("\n")[0]
    for code, words in FULL.items():
        if number == code or os.strerror(code) in str(error):
            return f"{words}: {text[:200] if number else os.strerror(code)}"
    return f"{type(error).__name__}: {text[:200]}"


def _not_a_trace_of_orbax(record: logging.LogRecord) -> bool:
    """Orbax prints the stack of every error that it raises as well; we tell it in one line."""
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)
