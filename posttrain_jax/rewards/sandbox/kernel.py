"""The kernel's calls that Python's library lacks, by ctypes. Each raises OSError, with the call's name."""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_ALL = 0x7E020000  # new user, process, mount, network, IPC, host name and control group namespaces
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MS_PRIVATE, MS_RELATIME, ST_RELATIME, MNT_DETACH = 1 << 18, 1 << 21, 4096, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECCOMP_MODE_FILTER = 2
CAPABILITIES = 0x20080522  # _LINUX_CAPABILITY_VERSION_3

# the same numbers on every machine
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
EXECUTE, WRITE, READ, LIST, TRUNCATE, IOCTL = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
ACCESSES = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many kinds of access to files a version knows

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int = 0, address: object = 0) -> None:
    """Changes a property of the calling process."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), address, 0, 0), f"prctl({option})")


def unshare(flags: int) -> None:
    """Moves the calling process into new namespaces."""
    _check(_libc.unshare(flags), "creating new namespaces")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mounts a file system, or changes a mount."""
    text = [each.encode() if each is not None else None for each in (source, target, kind, options)]
    _check(_libc.mount(text[0], text[1], text[2], ctypes.c_ulong(flags), text[3]), f"mounting {target}")


def bind(source: str, target: str, *, writable: bool = False) -> None:
    """Shows a folder or file at another place."""
    mount(source, target, None, MS_BIND | MS_REC)
    if not writable:
        kept = os.statvfs(target).f_flag  # a user namespace may not take a mount's restrictions back
        flags = kept & ~ST_RELATIME | (MS_RELATIME if kept & ST_RELATIME else 0)
        mount("none", target, None, flags | MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def pivot_root(new: str, old: str) -> None:
    """Makes a mount the root, and shows the root that was at another place."""
    number = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
    _check(_libc.syscall(number, new.encode(), old.encode()), "pivot_root")


def detach(target: str) -> None:
    """Takes a mount and all below it away."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"unmounting {target}")


def drop_capabilities() -> None:
    """Gives up all capabilities, also those a later exec could bring."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="utf-8") as file:
        last = int(file.read())
    for capability in range(last + 1):
        prctl(PR_CAPBSET_DROP, capability)
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITIES, 0), 8)
    _check(_libc.capset(header, ctypes.create_string_buffer(24)), "capset")


def filter_calls(code: bytes) -> None:
    """Loads a seccomp filter, after `PR_SET_NO_NEW_PRIVS`."""
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)


def landlock_version() -> int:
    """Of Landlock's interface; 0 where the kernel has none."""
    return max(0, _libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def landlock(version: int, readable: list[str], writable: list[str], devices: list[str]) -> None:
    """Confines the calling process to folders and devices; forbids TCP, and signals and sockets out of its domain."""
    every = (1 << ACCESSES.get(version, max(ACCESSES.values()))) - 1
    # struct landlock_ruleset_attr: files; TCP (bind, connect); scopes (abstract sockets, signals)
    attributes = struct.pack("=QQQ", every, 0b11, 0b11)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _check(
        _libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock_create_ruleset"
    )
    allowed = [(path, EXECUTE | READ | LIST) for path in readable]
    allowed += [(path, every & ~(MAKE_CHAR | MAKE_BLOCK)) for path in writable]
    allowed += [(path, (READ | WRITE | TRUNCATE | IOCTL) & every) for path in devices]
    for path, access in allowed:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        beneath = struct.pack("=Qi", access, descriptor)
        _check(_libc.syscall(LANDLOCK_ADD, rules, 1, beneath, 0), f"landlock_add_rule({path})")
        os.close(descriptor)
    _check(_libc.syscall(LANDLOCK_RESTRICT, rules, 0), "landlock_restrict_self")
    os.close(rules)


def hide_arguments() -> None:
    """Overwrites the arguments that others read in /proc."""
    with open("/proc/self/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    ctypes.memset(begin, 0, end - begin)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
