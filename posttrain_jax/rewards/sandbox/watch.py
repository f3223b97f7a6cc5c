"""What a tree of processes takes, for where no control group can bound it."""

from __future__ import annotations

import os
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
TMPFS = ("tmp", "dev/shm")


def usage(root: int, enough: int) -> tuple[int, int]:
    """Bytes and threads of a process and all its descendants, files in memory counted.

    Pages shared between processes are told apart only when the plain sum exceeds ``enough``: that takes longer.
    """
    children: dict[int, list[int]] = {}
    resident, threads = {}, {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(name))
        threads[int(name)], resident[int(name)] = int(fields[17]), int(fields[21]) * PAGE
    tree, next_ = [], [root]
    while next_:
        tree.append(pid := next_.pop())
        next_ += children.get(pid, [])
    files = _files(tree[-1])
    total = sum(resident.get(pid, 0) for pid in tree)
    if total + files > enough:
        total = sum(_proportional(pid, resident.get(pid, 0)) for pid in tree)
    return total + files, sum(threads.get(pid, 0) for pid in tree)


def _files(pid: int) -> int:
    """Bytes of the files in memory that a process sees at /tmp and /dev/shm."""
    total = 0
    for folder in TMPFS:
        try:
            found = os.statvfs(os.path.join("/proc", str(pid), "root", folder))
        except OSError:  # it has ended
            return 0
        if found.f_blocks * found.f_frsize <= 2**30:  # not the host's own, before the sandbox has its own
            total += (found.f_blocks - found.f_bfree) * found.f_frsize
    return total


def _proportional(pid: int, otherwise: int) -> int:
    """A process's memory in bytes, shared pages divided among their users."""
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except OSError:
        return otherwise
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")) or otherwise
