"""What every entry point does with its command line: flags, help, one-line errors, exit codes, compilation cache.

Flags are absl's, kept in a ``FlagValues`` of the entry point's own; they are parsed so that every mistake is told at
once. Imports no JAX.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence

from absl import flags

from posttrain_jax.errors import UserError
from posttrain_jax.run import allocator
from posttrain_jax.run.nearest import nearest

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def run(main: Callable[[list[str]], int]) -> None:
    """Runs an entry point and ends the process: a mistake the user can mend is one line on stderr and exit code 2."""
    sys.exit(outcome(lambda: main(sys.argv[1:])))


def outcome(work: Callable[[], int], told: Callable[[str], None] = lambda reason: None) -> int:
    """The exit code of some work; what ended it, if the user can mend that, is printed, and ``told`` in one line."""
    try:
        code = work()
        sys.stdout.flush()
        return code
    except UserError as error:
        problems = str(error).splitlines()
        code = fail(problems)
    except KeyboardInterrupt:
        problems = ["interrupted; the same command goes on from the last checkpoint"]
        fail(problems)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of stdout, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        problems = [_os_problem(error)]
        code = fail(problems)
    told(problems[0])
    return code


def fail(problems: Iterable[str]) -> int:
    """Prints one line a problem on stderr and returns the exit code of bad input."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return EXIT_BAD_INPUT


def parse(arguments: Sequence[str], values: flags.FlagValues, usage: str) -> None:
    """Parses the flags of an entry point that takes no configuration; ``--help`` prints usage and flags, and exits.

    Raises:
      UserError: with one line for every mistake.
    """
    if wants_help(arguments):
        print(f"{usage.strip()}\n\n{flag_table(values)}")
        raise SystemExit(0)
    given, mistakes = split(arguments, values, boolean=lambda name: name in values and bool(values[name].boolean))
    mistakes += assign(given, values)
    if mistakes:
        raise UserError("\n".join(mistakes))


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for help, in any of the usual spellings."""
    return any(argument in ("-h", "-help", "--help", "-?", "--helpfull", "--helpshort") for argument in arguments)


def split(
    arguments: Sequence[str], values: flags.FlagValues, boolean: Callable[[str], bool]
) -> tuple[list[tuple[str, str | None]], list[str]]:
    """The command line as (name, value) pairs, and the arguments that are no flags as mistakes.

    ``--a=b``, ``--a b``, ``-a=b``, and for booleans ``--a`` and ``--noa`` are understood; ``boolean`` tells which names
    need no value. The value of a flag that has none is None.
    """
    given, mistakes, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name:
            names = ", ".join(f"--{name}" for name in values)
            mistakes.append(f"{argument!r} is not a flag; flags are {names}")
        elif equals:
            given.append((name, value))
        elif boolean(name):
            given.append((name, "true"))
        elif name.startswith("no") and boolean(name[2:]):
            given.append((name[2:], "false"))
        elif rest and not rest[0].startswith("--"):
            given.append((name, rest.pop(0)))
        else:
            given.append((name, None))
    return given, mistakes


def assign(given: Iterable[tuple[str, str | None]], values: flags.FlagValues) -> list[str]:
    """Sets flags from (name, value) pairs; returns a sentence for each that is unknown or has a bad value."""
    mistakes, assignments = [], []
    for name, value in given:
        if name not in values:
            mistakes.append(f"--{name}: no such flag; the nearest is --{nearest(name, list(values))}")
            continue
        if value is None:
            mistakes.append(f"--{name}: needs a value")
            continue
        assignment = f"--{name}={value}"
        try:
            values[name].parser.parse(value)
            assignments.append(assignment)
        except (flags.Error, TypeError, ValueError):
            mistakes.append(f"{assignment}: expected {values[name].flag_type()}")
    values(["", *assignments])
    return mistakes


def flag_table(values: flags.FlagValues) -> str:
    """Name, default and help of every flag of an entry point."""
    rows = []
    for name in values:
        default = values[name].default
        rows.append((f"--{name}", "" if default is None else str(default), values[name].help))
    return table([*rows, ("--help", "", "show this text and exit")])


def table(rows: Sequence[tuple[str, str, str]], indent: str = "  ") -> str:
    """Rows of name, default and help in aligned columns, as wide as the terminal."""
    width = max(shutil.get_terminal_size((120, 24)).columns, 80)
    first, second = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
    lines = []
    for name, default, about in rows:
        head = f"{indent}{name:<{first}}{default:<{second}}"
        lines += textwrap.wrap(about, width, initial_indent=head, subsequent_indent=" " * len(head)) or [head]
    return "\n".join(lines)


def prepare_jax() -> None:
    """What makes a start and a CPU fast; call before JAX is imported."""
    allocator.keep_freed_memory()
    keep_compiled_programs()


def keep_compiled_programs() -> None:
    """Names the directory where compiled programs are kept for the next start.

    ``JAX_COMPILATION_CACHE_DIR`` wins over ``~/.cache/posttrain_jax/xla``; every program is kept, however small.
    """
    cache = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/posttrain_jax/xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if "://" in cache:  # a bucket: JAX opens it
        return
    try:
        os.makedirs(cache, exist_ok=True)
    except OSError as error:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        print(f"Compiled programs are not kept: {cache}: {error.strerror}.", file=sys.stderr)


def _os_problem(error: OSError) -> str:
    """One line for an error of the operating system: what failed, where, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    mend = {
        errno.ENOSPC: "; free some space, then the same command goes on from the last checkpoint",
        errno.EDQUOT: "; free some of the quota, then the same command goes on from the last checkpoint",
        errno.EACCES: "; choose another --workdir or change the permissions",
        errno.EPERM: "; choose another --workdir or change the permissions",
        errno.EROFS: "; choose another --workdir",
    }.get(error.errno or 0, "")
    return " ".join(f"{where}{error.strerror or error}{mend}".split())
