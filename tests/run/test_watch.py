"""posttrain_jax.run.watch: processes in small, each a Python without JAX."""

import socket
import subprocess
import sys
import time

from posttrain_jax.run.watch import EXIT_PEER_GONE

CHILD = """
import sys, time
from posttrain_jax.run.watch import Listener, Watch, connect
port, number = int(sys.argv[1]), int(sys.argv[2])
if number == 0:
    peers = Listener("localhost", port, "word").accept(3, 20)
else:
    peers = connect((["localhost"], port, "word"), number, 20)
watch = Watch(number, 3, peers, lambda: "start again")
print("met", flush=True)
{then}
"""


def children(then, port):
    command = [sys.executable, "-c", CHILD.replace("{then}", then), str(port)]
    made = [
        subprocess.Popen(
            [*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(3)
    ]
    for child in made:
        assert child.stdout.readline() == "met\n", child.communicate()
    return made


def free_port():
    with socket.create_server(("localhost", 0)) as probe:
        return probe.getsockname()[1]


def test_all_learn_of_a_death_also_while_python_is_busy():
    for victim in (0, 2):
        all_three = children("while True: sum(range(1000))", free_port())
        all_three[victim].kill()
        before = time.monotonic()
        for number, child in enumerate(all_three):
            error = child.communicate(timeout=30)[1]
            if number != victim:
                assert child.returncode == EXIT_PEER_GONE
                assert error.startswith(f"error: process {victim} of 3 is gone (") and error.count("\n") == 1
        assert time.monotonic() - before < 30


def test_a_failure_is_told_with_its_reason():
    then = "watch.failed('no space left') if number == 1 else time.sleep(60)"
    all_three = children(then, free_port())
    ended = [child.communicate(timeout=30)[1] for child in all_three]
    assert [child.returncode for child in all_three] == [EXIT_PEER_GONE, 0, EXIT_PEER_GONE]
    assert "process 1 of 3 is gone (no space left); start again" in ended[0] and "(no space left)" in ended[2]


def test_a_farewell_is_no_death():
    all_three = children("time.sleep(0.3 * number); watch.leave()", free_port())
    assert [child.communicate(timeout=30)[1] for child in all_three] == [""] * 3
    assert [child.returncode for child in all_three] == [0, 0, 0]
