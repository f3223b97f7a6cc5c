"""Attacks of a program on its sandbox, and whether each got through.

    python benchmarks/sandbox_attacks.py bubblewrap|landlock|plain [--json]

``plain`` is a subprocess without a sandbox: there they have to succeed, or they would prove nothing. They are bounded
so that they do no harm even then. Needs nothing but the standard library, so that any user's Python runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from posttrain_jax.rewards.sandbox.program import Limits, Outcome, Program
from posttrain_jax.rewards.sandbox.sandbox import Sandbox

MIB = 2**20
LIMITS = Limits(seconds=5.0, cpu_seconds=1, memory=192 * MIB, file=64 * MIB)
THROUGH = b"GOT THROUGH"
LIBRARY = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True)\n"


@dataclasses.dataclass(frozen=True)
class Attack:
    """Source with names of the host in braces; it says so when it gets through.

    Attributes:
      name: what it tries.
      source: a program.
      through: judges by the outcome and the host, instead of by what the program says.
      refused: where the machine itself refuses it, so that a plain subprocess proves nothing.
    """

    name: str
    source: str
    through: Callable[[Outcome, Host], bool] = lambda outcome, host: THROUGH in outcome.stdout
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Host:
    """What there is to attack: a folder, a secret in a file and in a process, listeners, an open file."""

    folder: str
    token: str
    victim: int
    port: int
    abstract: str
    leaked: int


def endless(outcome: Outcome, host: Host) -> bool:
    """Nothing ended it but the harness's own patience."""
    return outcome.ended == "exit" and outcome.status is None


def lives(token: str) -> list[int]:
    """Processes of the host with a token among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if token.encode() in path.read_bytes() and path.parent.name != str(os.getpid()):
                found.append(int(path.parent.name))
    return found


def outlived(outcome: Outcome, host: Host) -> bool:
    """A process it started is still there; it is ended now."""
    found = lives(host.token + "-daemon")
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


ATTACKS = (
    Attack("endless loop", "while True: pass", endless),
    Attack("endless sleep", "import time; time.sleep(1000)", endless),
    Attack(
        "fork bomb",
        """import os, time
begun = []
for _ in range(150):
    try: pid = os.fork()
    except OSError: break
    if not pid:
        time.sleep(20); os._exit(0)
    begun.append(pid)
if len(begun) > 70: print("GOT THROUGH", len(begun), flush=True)
for pid in begun: os.kill(pid, 9)""",
    ),
    Attack(
        "memory of one process",
        "x = bytearray(320 << 20)\nx[::4096] = b'x' * len(x[::4096])\nprint('GOT THROUGH')",
    ),
    Attack(
        "memory of many processes",
        """import os, time
r, w = os.pipe()
begun = []
for _ in range(8):
    if not (pid := os.fork()):
        os.close(r)
        x = bytearray(80 << 20); x[::4096] = b'x' * len(x[::4096])
        os.write(w, b'x'); time.sleep(20); os._exit(0)
    begun.append(pid)
os.close(w)
ready = sum(len(os.read(r, 1)) for _ in range(8))
if ready == 8 and not any(os.waitpid(-1, os.WNOHANG)): print("GOT THROUGH", flush=True)
for pid in begun: os.kill(pid, 9)""",
    ),
    Attack(
        "memory as files in /dev/shm",
        """import os
total, names = 0, [f"/dev/shm/{token}{{i}}" for i in range(2)]
for name in names:
    try:
        with open(name, "wb", buffering=0) as file:
            for _ in range(48): total += file.write(bytes(1 << 20))
    except OSError: pass
if total > 64 << 20: print("GOT THROUGH", total)
for name in names:
    if os.path.exists(name): os.unlink(name)""",
    ),
    Attack("memory as memfd", "import os; os.write(os.memfd_create('x'), bytes(1 << 20)); print('GOT THROUGH')"),
    Attack(
        "full disk",
        """total = 0
for folder in (".", "/tmp", "/var/tmp"):
    for i in range(3):
        try:
            with open(f"{{folder}}/{token}{{i}}", "wb", buffering=0) as file:
                for _ in range(32): total += file.write(bytes(1 << 20))
        except OSError: pass
if total > 100 << 20: print("GOT THROUGH", total)
import os
for folder in (".", "/tmp", "/var/tmp"):
    for i in range(3):
        if os.path.exists(f"{{folder}}/{token}{{i}}"): os.unlink(f"{{folder}}/{token}{{i}}")""",
    ),
    Attack(
        "TCP to the host",
        "import socket; socket.create_connection(('127.0.0.1', {port}), 1); print('GOT THROUGH')",
    ),
    Attack(
        "abstract socket of the host",
        "import socket; socket.socket(socket.AF_UNIX).connect('\\0{abstract}'); print('GOT THROUGH')",
    ),
    Attack("private file", "print('GOT THROUGH', open('{folder}/secret').read())"),
    Attack("list of a folder", "import os; print('GOT THROUGH', os.listdir('{folder}'))"),
    Attack("secret in the environment", "import os\nif '{token}' in str(os.environ): print('GOT THROUGH')"),
    Attack(
        "secret in /proc",
        """import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline"):
        try: content = open(f"/proc/{{pid}}/{{name}}").read()
        except OSError: continue
        if "{token}" in content and int(pid) != os.getpid(): print("GOT THROUGH", pid, name)""",
    ),
    Attack(
        "write outside",
        """import os
for path in ("{folder}/written", "/usr/bin/env", "/program/main.py", "/etc/ld.so.cache",
             "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"):
    try: os.close(os.open(path, os.O_WRONLY | (os.O_CREAT if path.endswith("written") else 0)))
    except OSError: continue
    print("GOT THROUGH", path)
for path in ("/", "/dev", "/usr"):
    if "{folder}" in os.getcwd(): break
    try: os.mkdir(path + "/made")
    except OSError: continue
    print("GOT THROUGH", path)""",
    ),
    Attack(
        "huge output",
        "import sys\nfor _ in range(64): sys.stdout.write('x' * (1 << 16))",
        lambda outcome, host: len(outcome.stdout) > LIMITS.output or outcome.ended == "exit",
    ),
    Attack("signal to a process of the host", "import os; os.kill({victim}, 0); print('GOT THROUGH')"),
    Attack(
        "daemon that outlives its run",
        """import os, subprocess, sys
if not os.fork():
    os.setsid()
    null = subprocess.DEVNULL
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(20)", "{token}-daemon"],
                     stdin=null, stdout=null, stderr=null, start_new_session=True)
    os._exit(0)
os.wait()""",
        outlived,
    ),
    Attack("user namespace", LIBRARY + "if libc.unshare(0x10000000) == 0: print('GOT THROUGH')"),
    Attack(
        "mount",
        LIBRARY
        + """user, group = os.getuid(), os.getgid()
if libc.unshare(0x10020000) == 0:
    open("/proc/self/uid_map", "w").write(f"0 {{user}} 1")
    libc.mount(b"none", b"/", None, 1 << 14 | 1 << 18, None)
if libc.mount(b"tmpfs", b".", b"tmpfs", 0, None) == 0: print("GOT THROUGH")""",
    ),
    Attack(
        "chroot",
        "import os; os.chroot('.'); print('GOT THROUGH')",
        refused="" if os.geteuid() == 0 else "not root",
    ),
    Attack(
        "ptrace",
        LIBRARY
        + """import time
if not (pid := os.fork()):
    time.sleep(1); os._exit(0)
for target in [pid] + ([1] if "{folder}" not in os.getcwd() else []):
    if libc.ptrace(16, target, None, None) == 0: print("GOT THROUGH", target)
os.kill(pid, 9)""",
    ),
    Attack(
        "memory of the process that started it",
        """import os
pid = os.getppid() if "{folder}" in os.getcwd() else 1
open(f"/proc/{{pid}}/mem", "r+b").close(); print("GOT THROUGH")""",
        refused="" if os.geteuid() == 0 else "may depend on yama",
    ),
    Attack(
        "io_uring",
        LIBRARY + "if libc.syscall(425, 8, ctypes.create_string_buffer(120)) >= 0: print('GOT THROUGH')",
    ),
    Attack(
        "keyrings",
        LIBRARY
        + """number = {{"x86_64": 250, "aarch64": 219}}[os.uname().machine]
if libc.syscall(number, 0, -3, 1) >= 0: print("GOT THROUGH")""",
    ),
    Attack(
        "open file that leaked",
        """import os
for fd in range(3, 256):
    try: content = os.pread(fd, 100, 0)
    except OSError: continue
    if b"{token}" in content: print("GOT THROUGH", fd)""",
    ),
    Attack(
        "keystrokes for a terminal",
        """import fcntl, os, pty, termios
leader, terminal = pty.openpty()
if not (pid := os.fork()):
    os.setsid(); fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    fcntl.ioctl(terminal, termios.TIOCSTI, b"x"); os._exit(7)
if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7: print("GOT THROUGH")""",
        refused="" if Path("/proc/sys/dev/tty/legacy_tiocsti").exists()
        and Path("/proc/sys/dev/tty/legacy_tiocsti").read_text().strip() == "1" else "this kernel has no TIOCSTI",
    ),
)  # fmt: skip


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """Something to attack, gone afterwards."""
    token, abstract = f"token{secrets.token_hex(8)}", f"posttrain{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        secret = Path(folder, "secret")
        secret.write_text(token)
        secret.chmod(0o600)
        leaked = os.open(secret, os.O_RDONLY)
        os.set_inheritable(leaked, True)
        stack.callback(os.close, leaked)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(f"\0{abstract}")
        unix.listen()
        victim = subprocess.Popen(["sleep", "300"], env={**os.environ, "SECRET": token})
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        os.environ["SECRET"] = token
        stack.callback(os.environ.pop, "SECRET")
        yield Host(folder, token, victim.pid, tcp.getsockname()[1], abstract, leaked)


def plainly(program: Program, target: Host, patience: float) -> Outcome:
    """What becomes of a program without any sandbox."""
    work = Path(target.folder, secrets.token_hex(4))
    work.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", program.source or ""],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=work,
        pass_fds=[target.leaked],
    )
    try:
        stdout, stderr = process.communicate(timeout=patience)
        return Outcome(stdout, stderr, process.returncode, "exit")
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        return Outcome(stdout, stderr, None, "exit")


def attack(kind: str, workers: int = 3) -> dict[str, dict[str, Any]]:
    """What became of each attack, by name.

    Raises:
      SandboxUnavailable: this machine cannot confine programs in that way.
    """
    with host() as target, contextlib.ExitStack() as stack:
        if kind == "plain":
            run = None
        else:
            run = stack.enter_context(Sandbox.open(kind, workers=workers)).run  # type: ignore[arg-type]
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        names = dataclasses.asdict(target)

        def one(each: Attack) -> dict[str, Any]:
            program = Program(source=each.source.format(**names), limits=LIMITS)
            patience = LIMITS.seconds + 1 if each.through is endless else 60.0
            outcome = run(program) if run else plainly(program, target, patience)
            return {
                "through": each.through(outcome, target),
                "ran": outcome.ended != "infrastructure",
                "ended": outcome.ended,
                "status": outcome.status,
                "refused": each.refused,
                "stdout": outcome.stdout[:200].decode(errors="replace"),
                "stderr": (outcome.reason or outcome.stderr[-200:].decode(errors="replace")).strip(),
            }

        found = dict(zip((each.name for each in ATTACKS), pool.map(one, ATTACKS), strict=True))
        found["signal to a process of the host"]["through"] |= not Path("/proc", str(target.victim)).exists()
        return found


def main() -> None:
    """Prints what got through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("bubblewrap", "landlock", "plain"))
    parser.add_argument("--json", action="store_true", help="print all that is known")
    options = parser.parse_args()
    found = attack(options.kind)
    if options.json:
        print(json.dumps(found))
        return
    for name, outcome in found.items():
        print(f"{'GOT THROUGH' if outcome['through'] else 'contained':12} {name:36} {outcome['ended']}")


if __name__ == "__main__":
    main()
