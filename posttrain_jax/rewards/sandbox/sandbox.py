"""A sandbox: programs go in, outcomes come out, and nothing else passes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from posttrain_jax.errors import UserError
from posttrain_jax.rewards.sandbox import cgroup, frames
from posttrain_jax.rewards.sandbox.layout import Layout, make_layout
from posttrain_jax.rewards.sandbox.program import Limits, Outcome, Program, within

Kind = Literal["auto", "bubblewrap", "landlock"]

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 30.0  # seconds beyond a program's own, after which its launcher is given up

REMEDIES = {
    "uid map": "allow it user namespaces: `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or an AppArmor "
    "profile for bwrap",
    "namespace": "allow user namespaces: `sysctl kernel.unprivileged_userns_clone=1`, `user.max_user_namespaces` above "
    "0; in a container, a seccomp profile that has them",
    "nknown option": "install bubblewrap 0.8 or newer",
    "prlimit": "install util-linux",
}


class SandboxUnavailable(UserError):
    """This machine cannot confine a program; the message tells why, and what would help."""


class Sandbox:
    """Runs programs that nobody trusts, several at a time; for use in any thread.

    Attributes:
      kind: what confines them, ``bubblewrap`` or ``landlock``.
    """

    def __init__(self, kind: str, layout: Layout, bubblewrap: str, workers: int):
        """For `open` to call, which also tries it."""
        self.kind = kind
        self._hello = {"layout": dataclasses.asdict(layout), "bubblewrap": bubblewrap}
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._workers = [_Worker(self._hello) for _ in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="sandbox")

    @classmethod
    def open(cls, kind: Kind = "auto", *, workers: int | None = None, python: str | None = None) -> Self:
        """A sandbox that was tried out with a first program.

        Args:
          kind: what is to confine programs; ``auto``: bubblewrap, or else Landlock.
          workers: how many run at once; one for each CPU if None.
          python: the interpreter within; with its packages; the one that runs us, without any, if None.

        Raises:
          SandboxUnavailable: this machine cannot; nothing runs unconfined instead.
          UserError: an argument is not one of those above.
        """
        if kind not in ("auto", "bubblewrap", "landlock"):
            raise UserError(f"the sandbox's kind is {kind!r}; expected 'auto', 'bubblewrap' or 'landlock'")
        if sys.platform != "linux":
            raise SandboxUnavailable(f"the sandbox needs Linux; this is {sys.platform}: use a virtual machine")
        workers = len(os.sched_getaffinity(0)) if workers is None else workers
        if workers < 1:
            raise UserError(f"workers is {workers}; expected at least 1")
        reasons = []
        for each in ("bubblewrap", "landlock") if kind == "auto" else (kind,):
            try:
                return cls._tried(each, workers, python)
            except SandboxUnavailable as error:
                reasons.append(str(error))
        raise SandboxUnavailable("; ".join(reasons))

    @classmethod
    def _tried(cls, kind: str, workers: int, python: str | None) -> Self:
        bubblewrap = ""
        if kind == "bubblewrap":
            bubblewrap = shutil.which("bwrap") or ""
            if not bubblewrap:
                raise SandboxUnavailable("bubblewrap: no bwrap in PATH; `apt-get install bubblewrap`")
        try:
            layout = make_layout(python)
        except FileNotFoundError as error:
            raise UserError(f"python is {str(error)!r}; expected the path of an interpreter") from error
        sandbox = cls(kind, layout, bubblewrap, workers)
        outcome = sandbox.run(Program(source="print(6 * 7)", limits=Limits(seconds=20.0)))
        if outcome.stdout == b"42\n" and outcome.ended == "exit":
            return sandbox
        sandbox.close()
        reason = outcome.reason or outcome.stderr.decode(errors="replace").strip() or f"it ended by {outcome.ended}"
        remedy = next((remedy for sign, remedy in REMEDIES.items() if sign in reason), "see docs/rewards.md, Sandbox")
        raise SandboxUnavailable(f"{kind}: {' '.join(reason.split())}; {remedy}")

    def run(self, program: Program) -> Outcome:
        """What becomes of a program; waits for a free worker and for the end."""
        worker = self._idle.get()
        try:
            return worker.run(program)
        finally:
            self._idle.put(worker)

    async def start(self, program: Program) -> Outcome:
        """Likewise, while the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.run, program)

    def close(self) -> None:
        """Ends what runs, and the workers."""
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


class _Worker:
    """A launcher and the pipes to it, started when first needed and again after it was lost."""

    def __init__(self, hello: dict[str, Any]):
        self._hello = hello
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def run(self, program: Program) -> Outcome:
        """What becomes of a program."""
        texts = [program.stdin, _bytes(program.source or ""), *map(_bytes, program.files.values())]
        texts += map(_bytes, program.given.values())
        command = [_bytes(argument).decode() for argument in program.command]
        header = {"command": command, "files": list(program.files), "given": list(program.given), "keep": program.keep}
        try:
            process = self._launcher()
            assert process.stdin and process.stdout
            frames.send(process.stdin, {**header, "limits": dataclasses.asdict(program.limits)}, texts)
            poll = select.poll()
            poll.register(process.stdout, select.POLLIN)
            if not poll.poll(1000 * (program.limits.seconds + PATIENCE)):
                raise TimeoutError("the launcher does not answer")
            reply, (stdout, stderr, back) = frames.receive(process.stdout)
        except (OSError, EOFError) as error:
            files = dict(program.files) if program.keep else {}
            if self._end():
                return Outcome(b"", b"", None, "memory", files)
            return Outcome(b"", b"", None, "infrastructure", files, f"a launcher was lost: {error}")
        files, reason = dict(program.files) if program.keep else {}, reply["reason"]
        if program.keep and reply["ended"] != "infrastructure":
            files, reason = _files(back, files)
        return Outcome(stdout, stderr, reply["status"], reply["ended"], files, reason)

    def close(self) -> None:
        """Ends the launcher and what it runs."""
        self._closed = True
        self._end()

    def _launcher(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise OSError("the sandbox is closed")
        if self._process is None:
            # no site packages and no environment: nothing of ours is there to be read
            code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from posttrain_jax.rewards.sandbox import launcher"
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", f"{code}; launcher.main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
            assert self._process.stdin
            frames.send(self._process.stdin, self._hello)
        return self._process

    def _end(self) -> bool:
        """Ends the launcher and what it runs; whether it was ended before, with its program, for want of memory."""
        process, self._process = self._process, None
        if process is None:
            return False
        assert process.stdin and process.stdout
        try:
            process.stdin.close()
        except BrokenPipeError:  # it is gone already
            pass
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        return process.returncode == -signal.SIGKILL and cgroup.bury(process.pid)


def _bytes(text: str) -> bytes:
    """UTF-8; lone surrogates, which a model can write, as question marks."""
    return text.encode(errors="replace")


def _files(back: bytes, given: dict[str, str]) -> tuple[dict[str, str], str]:
    """The files that came back, checked; those given and a reason if they are not what our collector writes."""
    try:
        found = json.loads(back)
    except (ValueError, RecursionError) as error:
        return given, f"no files came back: {type(error).__name__}" if back else "no files came back"
    if not isinstance(found, dict) or not all(isinstance(text, str) and within(path) for path, text in found.items()):
        return given, "no files came back: what came is not text by path"
    return found, ""
