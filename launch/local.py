"""Runs an entry point in several processes on this machine, as if each were a host.

    python launch/local.py --processes=2 launch/train.py --config=configs/minimax_m2.py [...]

Signals go to all of them. Each gets --coordinator, --processes and --process; JAX_NUM_CPU_DEVICES says how many CPU
devices each has.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import command_line
from absl import flags

from posttrain_jax.errors import UserError
from posttrain_jax.run.watch import EXIT_PEER_GONE

PATIENCE = 60  # seconds that the others have to end by themselves once one has failed


def main(arguments: Sequence[str]) -> int:
    """Starts the processes and waits for them; the code of the first that failed by its own doing, or 0."""
    split = next((i for i, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    values = flags.FlagValues()
    flags.DEFINE_integer("processes", 2, "how many", lower_bound=1, flag_values=values)
    command_line.parse([word for word in arguments[:split] if word != "--"], values, __doc__ or "")
    if split == len(arguments):
        raise UserError("nothing to run; for instance launch/train.py --config=configs/minimax_m2.py")
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, *arguments[split:], f"--coordinator=localhost:{port}", f"--processes={values.processes}"]
    children: list[subprocess.Popen] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: [child.send_signal(number) for child in children])
    for process in range(values.processes):
        # of a group of its own: Ctrl-C in the terminal comes once, from here
        children.append(subprocess.Popen([*command, f"--process={process}"], process_group=0))
    return _wait(children)


def _wait(children: list[subprocess.Popen]) -> int:
    deadline = float("inf")
    while any(child.poll() is None for child in children):
        if deadline == float("inf") and any(child.returncode for child in children):
            deadline = time.monotonic() + PATIENCE
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.1)
    codes = [child.returncode for child in children]
    own = [code for code in codes if code > 0 and code != EXIT_PEER_GONE]
    return own[0] if own else EXIT_PEER_GONE if any(codes) else 0


if __name__ == "__main__":
    command_line.run(main)
