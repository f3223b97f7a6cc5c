"""Notices when another process of the run is gone, and ends this one with one line: nobody waits for the dead.

A process that waits for one that died, inside a collective or at a barrier, would wait for long or for ever. So each
holds a connection to process 0 and a thread that looks at it, whatever the rest of the process does. A connection that
closes without a farewell, or is silent for `SILENCE` seconds, means that the process at its other end is gone, and
process 0 tells the rest. Imports no JAX.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable

EXIT_PEER_GONE = 76  # EX_PROTOCOL, the remote side failed: what was saved is sound, start all processes again
BEAT = 2.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one
GRACE = 3.0  # seconds for a process to find by itself what another one failed of

Address = tuple[list[str], int, str]


class Listener:
    """Process 0's open port; ``address`` (hosts it may be reached by, port, word to say first) is for the others."""

    def __init__(self, host: str | None = None, port: int = 0, word: str = ""):
        self.socket = socket.create_server(("", port), backlog=1024)
        hosts = [host] if host else [_outward(), socket.gethostname()]
        self.address: Address = (hosts, self.socket.getsockname()[1], word or secrets.token_hex(16))

    def accept(self, processes: int, seconds: float) -> dict[int, socket.socket]:
        """A connection to each of the other processes; closes the port.

        Raises:
          TimeoutError: one did not connect; the message says which.
        """
        peers: dict[int, socket.socket] = {}
        deadline = time.monotonic() + seconds
        with self.socket:
            while missing := set(range(1, processes)) - peers.keys():
                self.socket.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    peer, _ = self.socket.accept()
                except TimeoutError:
                    raise TimeoutError(f"process {min(missing)} did not come within {seconds:.0f} s") from None
                peer.settimeout(5)
                word, _, number = _line(peer).partition(" ")
                if word == self.address[2] and number.isdecimal() and int(number) in missing:
                    peers[int(number)] = peer
                else:
                    peer.close()
        for peer in peers.values():
            with contextlib.suppress(OSError):  # the watch will see that it is gone
                peer.sendall(b"go\n")
        return peers


def connect(address: Address, process: int, seconds: float) -> dict[int, socket.socket]:
    """A connection to process 0, once all are connected; tries again until it listens.

    Raises:
      OSError: none of its hosts can be reached, or another process did not come.
    """
    hosts, port, word = address
    deadline = time.monotonic() + seconds
    for attempt in itertools.count():
        try:
            peer = socket.create_connection((hosts[attempt % len(hosts)], port), timeout=10)
        except OSError as error:
            if time.monotonic() > deadline:
                raise OSError(f"process 0 cannot be reached ({error.strerror or error})") from error
            time.sleep(0.1)
            continue
        peer.sendall(f"{word} {process}\n".encode())
        peer.settimeout(max(deadline - time.monotonic(), 0) + GRACE)
        if _line(peer) == "go":
            return {0: peer}
        raise OSError("process 0 is gone, or waited for another one in vain")
    raise AssertionError


class Watch:
    """Watches over connections to other processes, by a thread of its own, until `leave`.

    Args:
      process: this one's number.
      processes: how many there are.
      peers: a connection to each watched process: process 0 watches all, every other one process 0.
      advice: what to do when one is gone, for the end of the line.
    """

    def __init__(self, process: int, processes: int, peers: dict[int, socket.socket], advice: Callable[[], str]):
        self.process, self.processes, self.advice = process, processes, advice
        self._peers = dict(peers)
        self._heard = {number: time.monotonic() for number in peers}
        self._rest = {number: "" for number in peers}
        self._lock = threading.Lock()
        self._ending: tuple[float, str] | None = None
        self._leaving, self._left = False, threading.Event()
        for peer in peers.values():
            peer.settimeout(BEAT)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    def failed(self, reason: str) -> None:
        """Tells the others that this process ends, and why; they end too."""
        self._say(f"failed {self.process} {' '.join(reason.split())[:300]}")
        self._left.set()

    def leave(self) -> None:
        """Says farewell: this process is done."""
        self._leaving = True
        self._say("bye")
        self._thread.join(GRACE)  # a socket that closes with something unread would take the farewell back

    def wait(self, seconds: float) -> None:
        """Gives the thread time to see whether another process is gone, which ends this one."""
        self._left.wait(seconds)

    @property
    def gone(self) -> bool:
        """Whether this process has said that it ends."""
        return self._left.is_set()

    def _say(self, text: str) -> None:
        with self._lock:
            for peer in self._peers.values():
                with contextlib.suppress(OSError):  # a peer that is gone is noticed where its lines are read
                    peer.sendall(f"{text}\n".encode())

    def _look(self) -> None:
        beat = 0.0
        while not self._left.is_set() and not (self._leaving and not self._peers):
            for number in self._waiting(0.2):
                self._read(number)
            now = time.monotonic()
            if now - beat >= BEAT:
                self._say("alive")
                beat = now
            for number in list(self._peers):
                if now - self._heard[number] > SILENCE:
                    self._lost("gone", number, f"no sign of life for {SILENCE:.0f} s")
            if self._ending and now >= self._ending[0]:
                self._end(self._ending[1])

    def _waiting(self, seconds: float) -> list[int]:
        """Those peers that have said something, or have closed, within some seconds."""
        poll, numbers = select.poll(), {}
        for number, peer in self._peers.items():
            poll.register(peer, select.POLLIN)
            numbers[peer.fileno()] = number
        return [numbers[handle] for handle, _ in poll.poll(1000 * seconds)]

    def _read(self, number: int) -> None:
        try:
            block = self._peers[number].recv(4096)
        except TimeoutError:
            return
        except OSError:
            block = b""
        if not block and self._leaving:
            self._forget(number)
        elif not block:
            self._lost("gone", number, "killed, or its machine is down")
        if not block:
            return
        self._heard[number] = time.monotonic()
        *lines, self._rest[number] = (self._rest[number] + block.decode(errors="replace")).split("\n")
        for line in lines:
            word, _, rest = line.partition(" ")
            who, _, reason = rest.partition(" ")
            if word == "bye":
                self._forget(number)
            elif word in ("gone", "failed"):
                self._lost(word, int(who), reason)

    def _forget(self, number: int) -> None:
        with self._lock:
            self._peers.pop(number, None)

    def _lost(self, word: str, number: int, reason: str) -> None:
        """Ends this process: at once, or where the lost one said why, after the time to find the same by itself."""
        self._forget(number)
        if self.process == 0:
            self._say(f"{word} {number} {reason}")
        line = f"error: process {number} of {self.processes} is gone ({reason}); {self.advice()}"
        if word == "gone" and not self._ending:
            self._end(line)
        self._ending = self._ending or (time.monotonic() + GRACE, line)

    def _end(self, line: str) -> None:
        with contextlib.suppress(OSError):  # nobody may be reading any more
            os.write(2, f"{line}\n".encode())
        os._exit(EXIT_PEER_GONE)


def _line(peer: socket.socket) -> str:
    """The first line that a peer sends, or what there is of it."""
    text = b""
    with contextlib.suppress(OSError):
        while not text.endswith(b"\n") and len(text) < 100 and (byte := peer.recv(1)):
            text += byte
    return text.decode(errors="replace").strip()


def _outward() -> str:
    """This machine's address as others see it; nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]
    return socket.gethostname()
