"""Starts programs without bubblewrap: namespaces, a file system of its own, Landlock, no capability, a seccomp filter.

Three processes, one below the other: the first enters new namespaces, and ends with the second; that is process 1
there, builds the file system, gives everything up and waits; the third becomes the program. Only a process of one
thread may do this, since it forks.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from posttrain_jax.rewards.sandbox import kernel
from posttrain_jax.rewards.sandbox import layout as layouts
from posttrain_jax.rewards.sandbox.layout import Layout

OLD, NEW = "/old", "/new"
FAILED = 125


def start(
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
    """Starts a command as `bubblewrap.start` does."""
    first = os.fork()
    if first:
        return first
    _guarded(lambda: _first(layout, command, files, memory, seccomp, streams, status, passed, enter))


def _guarded(body: Callable[[], int]) -> NoReturn:
    """Ends this process with the body's status, or after telling its mistake."""
    code = FAILED
    try:
        code = body()
    except Exception as error:  # whatever it is, this process may not go on as its parent
        os.write(2, f"{error}\n".encode())
    finally:
        os._exit(code)


def _first(layout, command, files, memory, seccomp, streams, status, passed, enter) -> int:
    """The process outside of the new process namespace."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    if enter:
        enter()
    _keep(streams, [status, *passed])
    user, group = os.getuid(), os.getgid()
    version = kernel.landlock_version()
    if not version:
        raise OSError("this kernel has no Landlock, or it is not among the modules of /sys/kernel/security/lsm")
    kernel.unshare(kernel.CLONE_ALL)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{layouts.NOBODY} {user} 1")):
        _write(f"/proc/self/{name}", text.encode())
    _write("/proc/self/gid_map", f"{layouts.NOBODY} {group} 1".encode())
    second = os.fork()
    if not second:
        _guarded(lambda: _second(layout, command, files, memory, seccomp, status, version))
    return _exit_status(os.waitpid(second, 0)[1])


def _second(layout, command, files, memory, seccomp, status, version) -> int:
    """Process 1 of the sandbox; with its end the kernel ends all others there."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid():  # a parent outside of the namespace has number 0
        raise OSError("this process is not the first of its namespace")
    kernel.hide_arguments()
    build(layout, files, memory)
    os.chdir(layouts.WORK)
    _write("/proc/sys/user/max_user_namespaces", b"0")
    readonly = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("none", "/proc", None, readonly | kernel.MS_NOEXEC)
    kernel.mount("none", "/", None, readonly)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # its memory is not for the program to read
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.landlock(version, ["/"], ["/tmp", "/dev/shm"], [f"/dev/{name}" for name in layouts.DEVICES])
    kernel.filter_calls(seccomp)
    os.set_inheritable(status, False)
    third = os.fork()
    if not third:
        _guarded(lambda: os.execve(command[0], list(command), layout.environment))
    while True:
        ended, how = os.waitpid(-1, 0)
        if ended == third:
            code = _exit_status(how)
            os.write(status, b'{ "exit-code": %d }\n' % code)
            return code


def build(layout: Layout, files: Mapping[str, bytes], memory: int) -> None:
    """Makes the file system and enters it; the host's is gone then. Needs a mount namespace of its own."""
    sources = {path: OLD + os.path.realpath(path) for path in layout.readable}
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    inside = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", "/tmp", "tmpfs", inside, f"size={sum(map(len, files.values())) + 2**20},mode=755")
    os.mkdir("/tmp" + OLD)
    os.mkdir("/tmp" + NEW)
    kernel.pivot_root("/tmp", "/tmp" + OLD)
    os.chdir("/")
    kernel.bind(NEW, NEW, writable=True)
    for path, source in sources.items():
        _place(NEW + path, folder=os.path.isdir(source))
        kernel.bind(source, NEW + path)
    for path in layout.hidden:
        kernel.mount("tmpfs", NEW + path, "tmpfs", inside | kernel.MS_RDONLY, "size=4096")
    for path, target in layout.links.items():
        os.symlink(target, NEW + path)
    for name in layouts.DEVICES:
        _place(f"{NEW}/dev/{name}", folder=False)
        kernel.bind(f"{OLD}/dev/{name}", f"{NEW}/dev/{name}", writable=True)
    os.symlink("/proc/self/fd", NEW + "/dev/fd")
    _place(NEW + "/proc", folder=True)
    kernel.mount("proc", NEW + "/proc", "proc", inside | kernel.MS_NOEXEC)
    for path, size in (("/tmp", memory), ("/dev/shm", layouts.SHARED_MEMORY)):
        _place(NEW + path, folder=True)
        kernel.mount("tmpfs", NEW + path, "tmpfs", inside, f"size={size}")
    os.makedirs(NEW + layouts.WORK)
    for path, content in files.items():
        os.makedirs(os.path.dirname(NEW + path), exist_ok=True)
        _write(NEW + path, content, os.O_CREAT | os.O_EXCL)
    os.chdir(NEW)
    kernel.pivot_root(".", ".")
    kernel.detach(".")
    os.chdir("/")


def _place(path: str, *, folder: bool) -> None:
    """Makes what something is to be mounted on."""
    os.makedirs(path if folder else os.path.dirname(path), exist_ok=True)
    if not folder:
        _write(path, b"", os.O_CREAT)


def _write(path: str, content: bytes, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | flags, 0o644)
    with open(descriptor, "wb", buffering=0) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]


def _keep(streams: Sequence[int], kept: Sequence[int]) -> None:
    """Leaves the standard streams and the descriptors that are kept, which an exec is to keep too."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    edges = [2, *sorted(kept), os.sysconf("SC_OPEN_MAX")]
    for low, high in zip(edges, edges[1:], strict=False):
        os.closerange(low + 1, high)
    for descriptor in kept:
        os.set_inheritable(descriptor, True)


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
