"""A seccomp filter: the system calls that a program needs no more than its jailbreak does.

Everything is allowed but what is named here. A filter is a program of the classic BPF machine (Linux,
``Documentation/userspace-api/seccomp_filter.rst``) over ``struct seccomp_data``: the call's number, the architecture,
the instruction pointer, six arguments of 64 bits.
"""

from __future__ import annotations

import errno
import platform
import struct

# numbers on x86_64 and on aarch64; None: not there
DENIED = {
    # other processes' memory, and the kernel's own machinery
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # namespaces and mounts
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # memory that belongs to no process, so that nobody's count shows it
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # the machine
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
}
CLONE, CLONE3, SOCKET, IOCTL = (56, 220), (435, 435), (41, 198), (16, 29)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*

NAMESPACES = 0x7E020000  # CLONE_NEW*: user, pid, net, ipc, uts, cgroup, mount
AF_UNIX, TIOCSTI, TIOCLINUX, X32 = 1, 0x5412, 0x541C, 0x40000000

LOAD, JUMP_EQUAL, JUMP_BITS, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets into struct seccomp_data
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def make_filter(machine: str | None = None) -> bytes:
    """The filter for a machine such as ``x86_64``, this one if None: an array of ``struct sock_filter``.

    Raises:
      NotImplementedError: the numbers of that machine's system calls are not known here.
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise NotImplementedError(f"no system calls are listed for the machine {machine!r}; known: {list(MACHINES)}")
    column, architecture = MACHINES[machine]
    deny = _word(RETURN, ERRNO | errno.EPERM)
    code = [_word(LOAD, ARCHITECTURE), _word(JUMP_EQUAL, architecture, 1, 0), _word(RETURN, KILL), _word(LOAD, NUMBER)]
    if machine == "x86_64":  # the same calls under other numbers
        code += [_word(JUMP_BITS, X32, 0, 1), deny]
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            code += [_word(JUMP_EQUAL, number, 0, 1), deny]
    # glibc falls back to clone, whose flags a filter can see
    code += [_word(JUMP_EQUAL, CLONE3[column], 0, 1), _word(RETURN, ERRNO | errno.ENOSYS)]
    code += _on(CLONE[column], 0, [_word(JUMP_BITS, NAMESPACES, 0, 1), deny])
    code += _on(SOCKET[column], 0, [_word(JUMP_EQUAL, AF_UNIX, 1, 0), deny])
    code += _on(IOCTL[column], 1, [_word(JUMP_EQUAL, TIOCSTI, 1, 0), _word(JUMP_EQUAL, TIOCLINUX, 0, 1), deny])
    return b"".join([*code, _word(RETURN, ALLOW)])


def _on(number: int, argument: int, check: list[bytes]) -> list[bytes]:
    """For one call: load its argument's low half, all that the kernel reads of these; then the check, then allow."""
    body = [_word(LOAD, ARGUMENTS + 8 * argument), *check, _word(RETURN, ALLOW)]
    return [_word(JUMP_EQUAL, number, 0, len(body)), *body]


def _word(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction: jumps go ``yes`` or ``no`` instructions further than the next."""
    return struct.pack("=HBBI", code, yes, no, value)
