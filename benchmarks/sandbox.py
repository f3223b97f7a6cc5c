"""Does the sandbox contain what attacks it, how many programs a second does it run, and what is left of them?

Attacks of `sandbox_attacks.py` on a plain subprocess and on each kind of sandbox, by this user and, where this is root,
by an ordinary one. Then programs that print a number, one worker and eight, beside plain subprocesses of the same
Python. Then thousands of programs that leave a daemon and a file behind: processes, open files, groups and memory of
the launchers before and after.

    python benchmarks/sandbox.py [--runs=10000]
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure

sys.path.insert(0, str(measure.ROOT))
from posttrain_jax.rewards.sandbox.layout import make_layout
from posttrain_jax.rewards.sandbox.program import Program
from posttrain_jax.rewards.sandbox.sandbox import Sandbox

ATTACKS = measure.ROOT / "benchmarks" / "sandbox_attacks.py"
KINDS = ("plain", "bubblewrap", "landlock")
ORDINARY = "1000"
LITTER = """import os
open("file", "w").write("x" * 100_000)
if not os.fork():
    os.setsid()
    if not os.fork():
        import time; time.sleep(60)"""


def main() -> None:
    """Attacks, then speed, then leaks."""
    parser = measure.parser(__doc__, "sandbox")
    parser.add_argument(
        "--runs", type=int, default=10_000, help="programs of the search for leaks; of Landlock a quarter"
    )
    parser.add_argument("--programs", type=int, default=100, help="programs of each timing")
    options = parser.parse_args()
    attacks = {f"{kind}, {user}": found for kind in KINDS for user in users() if (found := attacked(kind, user))}
    names = list(next(iter(attacks.values())))
    measure.show(
        "attacks: + contained, - got through",
        ("attack", *attacks),
        [(name, *("-" if found[name]["through"] else "+" for found in attacks.values())) for name in names],
    )
    speed = speeds(options.programs)
    rows = [(name, found["median"], *found["quartiles"]) for name, found in speed.items()]
    measure.show("programs a second", ("", "median", "lower quartile", "upper quartile"), rows)
    runs = {"bubblewrap": options.runs, "landlock": options.runs // 4}
    leaks = {kind: leaked(kind, count) for kind, count in runs.items()}
    for kind, found in leaks.items():
        measure.show(f"{runs[kind]} programs, {kind}", ("", "before", "after"), [(k, *v) for k, v in found.items()])
    contained = {name: {attack: told(each) for attack, each in found.items()} for name, found in attacks.items()}
    numbers = {"attacks": contained, "programs_a_second": speed, "runs": runs, "leaks_before_after": leaks}
    measure.write(options.output, numbers)


def told(outcome: dict[str, Any]) -> str:
    """An attack's outcome in two words."""
    return "got through" if outcome["through"] else f"contained: {outcome['ended']}"


def users() -> list[str]:
    """Who attacks."""
    return ["root", "ordinary"] if os.geteuid() == 0 and shutil.which("setpriv") else ["this user"]


def attacked(kind: str, user: str) -> dict[str, Any] | None:
    """What became of all attacks; None where that user cannot try."""
    command = [sys.executable]
    if user == "ordinary":
        command = ["setpriv", "--reuid", ORDINARY, "--regid", ORDINARY, "--clear-groups", "/usr/bin/python3"]
    ended = subprocess.run([*command, "-B", str(ATTACKS), kind, "--json"], capture_output=True, text=True, cwd="/")
    if ended.returncode:
        print(f"{kind}, {user}: {ended.stderr.strip().splitlines()[-1]}")
        return None
    return json.loads(ended.stdout)


def speeds(programs: int) -> dict[str, Any]:
    """Programs a second of every kind, in turns."""
    python = make_layout().python

    def plainly(program: Program) -> None:
        subprocess.run([python, "-s", "-S", "-c", program.source or ""], capture_output=True, check=True)

    def side(run: Callable[[Program], Any], workers: int) -> Callable[[], None]:
        def all_of_them() -> None:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(run, [Program(source="print(1)")] * programs))

        return all_of_them

    with Sandbox.open("bubblewrap", workers=8) as first, Sandbox.open("landlock", workers=8) as second:
        runs = {"plain, no site packages": plainly, "bubblewrap": first.run, "landlock": second.run}
        sides = {f"{name}, {count} workers": side(run, count) for name, run in runs.items() for count in (1, 8)}
        seconds = measure.in_turns(sides, repetitions=5)
    return {name: measure.rate(programs, found) for name, found in seconds.items()}


def leaked(kind: str, runs: int) -> dict[str, tuple[int, int]]:
    """What there is before and after many programs that leave things behind."""
    with Sandbox.open(kind, workers=8) as sandbox, ThreadPoolExecutor(8) as pool:  # type: ignore[arg-type]
        list(pool.map(sandbox.run, [Program(source=LITTER)] * 80))
        before = census()
        begin = time.perf_counter()
        endings = {outcome.ended for outcome in pool.map(sandbox.run, [Program(source=LITTER)] * runs)}
        print(f"{kind}: {runs} programs in {time.perf_counter() - begin:.0f} s, which ended by {endings}", flush=True)
        after = census()
    return {name: (before[name], after[name]) for name in before}


def census() -> dict[str, int]:
    """Counts over this process and all below it, and of the host's folders and groups."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    family, size = {os.getpid()}, 0
    while size != len(family):
        size = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    resident = [re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in family]
    return {
        "processes": len(family),
        "open files": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in family),
        "resident KiB": sum(int(found[1]) for found in resident if found),
        "entries of /tmp": len(os.listdir("/tmp")),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "control groups": len(list(Path("/sys/fs/cgroup").glob("**/posttrain_jax-*"))),
    }


if __name__ == "__main__":
    main()
