"""Starts programs by bubblewrap: namespaces, a file system of its own, no capability, a seccomp filter.

bubblewrap's defaults let through more than one would think, so each option is here for a reason. Its process 1 keeps
the environment and shows the arguments that it was started with: the first is empty, the second come by a file
descriptor. Started by root it keeps all capabilities in the new user namespace. Its ``/``, ``/dev`` and ``/dev/shm``
are writable memory of half the machine's size: they are bounded or made read-only after they are filled. Its ``/proc``
lets root's programs write to ``/proc/sys``, which is the host's, and into process 1.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence

from posttrain_jax.rewards.sandbox import layout as layouts
from posttrain_jax.rewards.sandbox.layout import Layout


def arguments(layout: Layout, given: Mapping[str, int], memory: int, seccomp: int, status: int) -> list[str]:
    """bubblewrap's options.

    Args:
      layout: the file system.
      given: file descriptors of the files to be written, by path.
      memory: bytes of /tmp, which holds the working folder.
      seccomp: file descriptor of the filter.
      status: file descriptor to tell of the start and the end.
    """
    options = ["--unshare-user", "--unshare-all", "--disable-userns", "--cap-drop", "ALL"]
    options += ["--uid", str(layouts.NOBODY), "--gid", str(layouts.NOBODY), "--hostname", "sandbox"]
    options += ["--die-with-parent", "--new-session", "--json-status-fd", str(status)]
    options += ["--proc", "/proc", "--dev", "/dev", "--size", str(layouts.SHARED_MEMORY), "--tmpfs", "/dev/shm"]
    options += ["--size", str(memory), "--tmpfs", "/tmp", "--dir", layouts.WORK]
    for path in layout.readable:
        options += ["--ro-bind", path, path]
    for path in layout.hidden:
        options += ["--size", "4096", "--tmpfs", path, "--remount-ro", path]
    for path, target in layout.links.items():
        options += ["--symlink", target, path]
    for path, descriptor in given.items():
        options += ["--file", str(descriptor), path]
    options += [
        "--remount-ro",
        "/proc",
        "--remount-ro",
        "/dev",
        "--remount-ro",
        "/",
        "--chdir",
        layouts.WORK,
        "--clearenv",
    ]
    for name, value in layout.environment.items():
        options += ["--setenv", name, value]
    return [*options, "--seccomp", str(seccomp)]


def start(
    bubblewrap: str,
    layout: Layout,
    command: Sequence[str],
    files: Mapping[str, bytes],
    memory: int,
    seccomp: bytes,
    streams: Sequence[int],
    status: int,
    passed: Sequence[int],
    enter: Callable[[], None] | None,
) -> int:
    """Starts a command; only a process of one thread may call this.

    Args:
      bubblewrap: path of the program.
      layout: the file system.
      command: arguments, the first a path within.
      files: what is written before the start, by path within.
      memory: bytes of /tmp.
      seccomp: the filter.
      streams: file descriptors of standard input, output and errors.
      status: file descriptor that tells how the start went; see `started`.
      passed: file descriptors that the command keeps.
      enter: called in the new process before anything else.

    Returns:
      The process's id. When it is gone, so is all that it started.
    """
    given = {path: _memory(content) for path, content in files.items()}
    filter_ = _memory(seccomp)
    options = _memory(b"".join(f"{each}\0".encode() for each in arguments(layout, given, memory, filter_, status)))
    inherited = [*given.values(), filter_, options, status, *passed]
    try:
        process = subprocess.Popen(
            [bubblewrap, "--args", str(options), "--", *command],
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            env={},
            cwd="/",
            pass_fds=inherited,
            preexec_fn=enter,
            start_new_session=True,
        )
    finally:
        for descriptor in (*given.values(), filter_, options):
            os.close(descriptor)
    process.returncode = 0  # it is waited for by its id
    return process.pid


def started(told: bytes) -> bool:
    """Whether the command was reached, by what was told to ``status``: its exit code is told only then."""
    return b'"exit-code"' in told


def _memory(content: bytes) -> int:
    """A file descriptor from which the content can be read."""
    descriptor = os.memfd_create("sandbox")
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
