"""What a program sees: system folders and a Python to read, a little memory to write to, none of the host's files."""

from __future__ import annotations

import dataclasses
import os
import sys

MIB = 2**20

WORK = "/tmp/work"
PROGRAM = "/program"
SOURCE = f"{PROGRAM}/main.py"
COLLECTOR = f"{PROGRAM}/collect.py"
SHARED_MEMORY = 32 * MIB  # bytes of /dev/shm
DEVICES = ("null", "zero", "full", "random", "urandom")
NOBODY = 65534

# what programs and the dynamic linker look up; the rest of /etc stays outside
ETC = ("/etc/alternatives", "/etc/ld.so.cache")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The file system of a sandbox.

    Attributes:
      python: the interpreter within.
      readable: the host's folders and files, at their own paths, to read and execute.
      links: symbolic links: target by path.
      hidden: folders among the readable ones that are to be empty.
    """

    python: str
    readable: tuple[str, ...]
    links: dict[str, str]
    hidden: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """All environment variables of a program."""
        return {
            "PATH": f"{os.path.dirname(self.python)}:/usr/bin:/bin",
            "HOME": "/tmp",
            "TMPDIR": "/tmp",
            "LANG": "C.UTF-8",
            "PYTHONPATH": WORK,
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }


def make_layout(python: str | None = None) -> Layout:
    """The layout around an interpreter with its packages; by default the one that runs us, without any package.

    Raises:
      FileNotFoundError: there is no such interpreter.
    """
    hidden = ()
    if python is None:
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        base, packages = f"{sys.base_prefix}/bin/{name}", f"{sys.base_prefix}/lib/{name}/site-packages"
        chosen = base if os.access(base, os.X_OK) else sys.executable
        hidden = (packages,) if os.path.isdir(packages) else ()
    else:
        chosen = os.path.abspath(python)
    if not os.access(chosen, os.X_OK):
        raise FileNotFoundError(chosen)
    readable, links = ["/usr"], {}
    for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(path):
            links[path] = os.readlink(path)
        elif os.path.isdir(path):
            readable.append(path)
    for prefix in prefixes(chosen):
        if not any(prefix == path or prefix.startswith(path + "/") for path in readable):
            readable.append(prefix)
    return Layout(chosen, (*readable, *(path for path in ETC if os.path.exists(path))), links, hidden)


def prefixes(python: str) -> list[str]:
    """The folders an interpreter lives in: its own, and where it is a virtual environment's, the one it stands for."""
    found, path = [], python
    for _ in range(10):
        folder = os.path.dirname(os.path.dirname(path))
        if folder not in found:
            found.append(folder)
        if not os.path.islink(path):
            return found
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return found
