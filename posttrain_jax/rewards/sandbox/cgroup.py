"""A control group that bounds memory and processes of one sandbox at a time, where this user may make one."""

from __future__ import annotations

import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "posttrain_jax-"
ENDING = 5.0  # seconds that processes may take to end after their launcher


class Group:
    """Folders of the controllers of memory and of processes: two in version 1, one and the same in version 2.

    What a program's files in memory take is counted too. The process that makes it goes in itself, so that whatever it
    starts is in from birth: the kernel takes 10 ms to move a process.
    """

    def __init__(self, memory: Path, pids: Path):
        """For `make` to call."""
        self._memory, self._pids = memory, pids
        self._second = (memory / "memory.max").exists()
        for folder in self._folders:
            (folder / "cgroup.procs").write_text("0")

    @property
    def _folders(self) -> set[Path]:
        return {self._memory, self._pids}

    def limit(self, memory: int, processes: int) -> None:
        """Bounds what enters next: bytes, and processes with their threads."""
        if self._second:
            _write(self._memory / "memory.max", memory)
            _write(self._memory / "memory.swap.max", 0)
        else:
            _write(self._memory / "memory.memsw.limit_in_bytes", -1)
            _write(self._memory / "memory.limit_in_bytes", memory)
            _write(self._memory / "memory.memsw.limit_in_bytes", memory)
        _write(self._pids / "pids.max", processes)

    def kills(self) -> int:
        """How many processes were ended for want of memory, ever."""
        return _kills(self._memory)

    def close(self) -> None:
        """Leaves and removes the folders; nothing else may be in them any more."""
        for folder in self._folders:
            (folder.parent / "cgroup.procs").write_text("0")
            folder.rmdir()


def expose() -> None:
    """Makes a process that was just started one of the first to end when the memory runs out."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def bury(pid: int) -> bool:
    """Removes the group of a maker that was killed; whether it held processes that ended for want of memory."""
    folders = [parent / f"{PREFIX}{pid}" for parent in (_parent("memory"), _parent("pids")) if parent]
    if not all(folder.is_dir() for folder in folders) or len(folders) < 2:
        return False
    killed, deadline = _kills(folders[0]) > 0, time.monotonic() + ENDING
    for folder in set(folders):
        while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
    _sweep(folders[0].parent)
    _sweep(folders[1].parent)
    return killed


def make() -> Group | None:
    """This process's group for what it starts; None where it may not make one."""
    memory, pids = _parent("memory"), _parent("pids")
    if memory is None or pids is None:
        return None
    folders = [parent / f"{PREFIX}{os.getpid()}" for parent in (memory, pids)]
    try:
        for folder in dict.fromkeys(folders):
            _sweep(folder.parent)
            folder.mkdir()
        group = Group(*folders)
        group.limit(2**30, 2**10)
        return group
    except OSError:
        for folder in folders:
            if folder.is_dir():
                (folder.parent / "cgroup.procs").write_text("0")
                folder.rmdir()
        return None


def _kills(memory: Path) -> int:
    events = memory / "memory.events"
    lines = (events if events.exists() else memory / "memory.oom_control").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _parent(controller: str) -> Path | None:
    """The folder of this process's group under a controller."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            mounted = ROOT / controller
            own = mounted / path.lstrip("/")
            return own if own.is_dir() else mounted if mounted.is_dir() else None
    if (ROOT / "cgroup.controllers").exists():
        # a group with processes in it cannot hand controllers on, except for the root
        return ROOT if controller in (ROOT / "cgroup.subtree_control").read_text().split() else None
    return None


def _sweep(parent: Path) -> None:
    """Removes groups whose makers were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        if not Path("/proc", folder.name.removeprefix(PREFIX)).exists():
            try:
                folder.rmdir()
            except OSError:  # another process was quicker, or it is another's
                continue


def _write(path: Path, value: int) -> None:
    """Sets one bound; those of swap are absent from kernels that do not count it."""
    if path.exists() or "sw" not in path.name:
        path.write_text(str(value))
