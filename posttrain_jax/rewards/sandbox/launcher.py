"""A process that runs programs in sandboxes, one at a time, for a process that may have threads, JAX and secrets.

It is started by exec with an empty environment, has one thread, and imports nothing but the standard library. Messages
come on standard input and go to standard output; see `frames`. When its input closes, it ends with all it started.
"""

from __future__ import annotations

import errno
import functools
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from posttrain_jax.rewards.sandbox import bubblewrap, cgroup, frames, kernel, landlock, watch
from posttrain_jax.rewards.sandbox import layout as layouts
from posttrain_jax.rewards.sandbox.seccomp import make_filter

COLLECTING = 2.0  # seconds more, for files to come back
OWN = 3  # processes of the sandbox itself
TICK = 0.05  # seconds between two looks at the memory
CHUNK = 2**16
REAPING = 10.0  # seconds until processes that were killed must be gone


class Launcher:
    """Runs programs in one kind of sandbox."""

    def __init__(self, layout: layouts.Layout, bwrap: str):
        """``bwrap`` is the path of bubblewrap; without it Landlock confines programs."""
        self._layout = layout
        self._start = functools.partial(bubblewrap.start, bwrap) if bwrap else landlock.start
        self._filter = make_filter()
        self._group = cgroup.make()
        self._collector = Path(__file__).with_name("collect.py").read_bytes()

    def run(self, header: dict[str, Any], parts: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        """One program; the header holds its command, paths and limits, the parts its input, source and files."""
        limits, keep = header["limits"], header["keep"]
        stdin, source, *contents = parts
        places = [f"{layouts.WORK}/{path}" for path in header["files"]]
        places += [f"{layouts.PROGRAM}/{path}" for path in header["given"]]
        files = dict(zip(places, contents, strict=True))
        files[layouts.SOURCE] = source
        command = header["command"] or [self._layout.python, "-s", layouts.SOURCE]
        run = _Run(stdin, limits, keep, self._group)
        if keep:
            files[layouts.COLLECTOR] = self._collector
            seconds, most = str(limits["seconds"]), str(limits["file"])
            collector = [self._layout.python, "-I", "-S", layouts.COLLECTOR, str(run.back), seconds, most]
            command = [*collector, *command]
        try:
            run.pid = self._start(
                self._layout,
                [*_prlimit(limits, self._group is not None), *command],
                files,
                limits["file"],
                self._filter,
                run.streams,
                run.status,
                [run.back] if keep else [],
                cgroup.expose if self._group else None,
            )
        except OSError as error:
            run.close()
            if error.errno == errno.E2BIG:  # which is the program's own fault
                return {"ended": "exit", "status": 126, "reason": ""}, [b"", str(error).encode(), b""]
            return {"ended": "infrastructure", "status": None, "reason": str(error)}, [b"", b"", b""]
        return run.finish()

    def close(self) -> None:
        """Removes the control group."""
        if self._group:
            self._group.close()


class _Run:
    """The pipes of one program, and how it is watched until nothing of it is left."""

    def __init__(self, stdin: bytes, limits: dict[str, Any], keep: bool, group: cgroup.Group | None):
        self._limits, self._keep, self._group = limits, keep, group
        self._stdin = memoryview(stdin)
        reads = {name: os.pipe() for name in ("stdout", "stderr", "status", "back")}
        self._ours = {pair[0]: name for name, pair in reads.items()}
        entrance, self._input = os.pipe()
        self.streams = (entrance, reads["stdout"][1], reads["stderr"][1])
        self.status, self.back = reads["status"][1], reads["back"][1]
        self._found = {name: bytearray() for name in reads}
        self.pid = 0
        if group:
            group.limit(limits["memory"], limits["processes"] + OWN + 1)  # this process is in it too
            self._kills = group.kills()
        self._begin = time.monotonic()

    def close(self) -> None:
        """Closes what the program was to have."""
        for descriptor in (*self.streams, self.status, self.back, *self._ours, self._input):
            os.close(descriptor)

    def finish(self) -> tuple[dict[str, Any], list[bytes]]:
        """Waits for the end, or brings it about."""
        for descriptor in (*self.streams, self.status, self.back):
            os.close(descriptor)
        for descriptor in (*self._ours, self._input):
            os.set_blocking(descriptor, False)
        end = os.pidfd_open(self.pid)
        poll = select.poll()
        for descriptor in (*self._ours, end):
            poll.register(descriptor, select.POLLIN)
        poll.register(0, 0)  # hangs up when nobody waits for the outcome
        self._feed(poll)
        ended = self._watch(poll, end)
        elapsed = time.monotonic() - self._begin
        code = _reap(self.pid)
        for descriptor in self._ours:
            self._read(descriptor)
            os.close(descriptor)
        os.close(end)
        if self._input >= 0:
            os.close(self._input)
        ended, reason = self._judge(ended, code, elapsed)
        status = code if ended in ("exit", "cpu") else None
        texts = [bytes(self._found[name][: self._limits["output"]]) for name in ("stdout", "stderr")]
        return {"ended": ended, "status": status, "reason": reason}, [*texts, bytes(self._found["back"])]

    def _watch(self, poll: select.poll, end: int) -> str | None:
        """The limit that was met; None if the program ended by itself."""
        deadline = self._begin + self._limits["seconds"] + (COLLECTING if self._keep else 0)
        look = time.monotonic() + TICK
        while True:
            now = time.monotonic()
            if now >= deadline:
                return "seconds"
            if now >= look:
                if self._too_much():
                    return "memory"
                look = time.monotonic() + TICK
            for descriptor, event in poll.poll(max(1, 1000 * (min(deadline, look) - now))):
                if descriptor == 0:
                    _reap(self.pid)
                    raise EOFError("nobody waits for the outcome")
                if descriptor == end:
                    return None
                if descriptor == self._input:
                    self._feed(poll)
                elif not self._read(descriptor) or not event & select.POLLIN:
                    poll.unregister(descriptor)
            if len(self._found["stdout"]) + len(self._found["stderr"]) > self._limits["output"]:
                return "output"

    def _feed(self, poll: select.poll) -> None:
        """Writes what fits of the input, and closes it after the last."""
        try:
            while self._stdin:
                self._stdin = self._stdin[os.write(self._input, self._stdin[:CHUNK]) :]
        except BlockingIOError:
            poll.register(self._input, select.POLLOUT)
            return
        except BrokenPipeError:  # it reads no further
            self._stdin = memoryview(b"")
        try:
            poll.unregister(self._input)
        except KeyError:  # all fitted at once
            pass
        os.close(self._input)
        self._input = -1

    def _read(self, descriptor: int) -> bool:
        """Reads what is there, to just above the limit; False after the last."""
        name = self._ours[descriptor]
        found = self._found[name]
        most = {"status": CHUNK, "back": 2 * self._limits["file"]}.get(name, self._limits["output"])
        while len(found) <= most:
            try:
                chunk = os.read(descriptor, CHUNK)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            found += chunk
        return name in ("stdout", "stderr")

    def _too_much(self) -> bool:
        if self._group:
            return self._group.kills() > self._kills
        memory, threads = watch.usage(self.pid, self._limits["memory"])
        return memory > self._limits["memory"] or threads > self._limits["processes"] + OWN

    def _judge(self, ended: str | None, code: int, elapsed: float) -> tuple[str, str]:
        """How it ended, and what went wrong if it did not run."""
        if ended:
            return ended, ""
        if self._group and self._group.kills() > self._kills:
            return "memory", ""
        if not bubblewrap.started(bytes(self._found["status"])):
            return "infrastructure", self._found["stderr"].decode(errors="replace").strip() or f"exit status {code}"
        if self._keep and elapsed >= self._limits["seconds"]:
            return "seconds", ""
        if code == 128 + signal.SIGXCPU or (code == 128 + signal.SIGKILL and elapsed >= self._limits["cpu_seconds"]):
            return "cpu", ""
        return "exit", ""


def _prlimit(limits: dict[str, Any], grouped: bool) -> list[str]:
    """Limits of a process: set within, since processes are counted for each user namespace."""
    bounds = {"nproc": limits["processes"], "fsize": limits["file"], "core": 0, "nofile": 256}
    if not grouped:
        bounds["as"] = limits["memory"]
    cpu = limits["cpu_seconds"]
    return ["/usr/bin/prlimit", f"--cpu={cpu}:{cpu + 1}", *(f"--{name}={most}:{most}" for name, most in bounds.items())]


def _reap(pid: int) -> int:
    """Ends a process and everything below it; returns the process's exit status when all of it is gone."""
    code, deadline = 0, time.monotonic() + REAPING
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            code = code if code >= 0 else 128 - code
        elif not ended:
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes below {pid} do not end")
            time.sleep(0.0005)


def main() -> None:
    """Serves until the input closes."""
    # what is printed by mistake must not be taken for a message
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 2**16) if most > 0 else 2**16, most))
    # what loses its parent comes to this process, which so learns when it is gone
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    header, _ = frames.receive(requests)
    launcher = Launcher(layouts.Layout(**header["layout"]), header["bubblewrap"])
    try:
        while True:
            frames.send(replies, *launcher.run(*frames.receive(requests)))
    except (EOFError, BrokenPipeError):
        pass
    finally:
        launcher.close()


if __name__ == "__main__":
    sys.exit(main())
