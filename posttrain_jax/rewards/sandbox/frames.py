"""Messages between the sandbox and its launchers: a header in JSON, then parts of bytes, over a pipe."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import IO, Any


def send(stream: IO[bytes], header: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
    """Writes one message.

    Raises:
      BrokenPipeError: nobody reads it.
    """
    text = json.dumps({**header, "parts": [len(part) for part in parts]}).encode()
    stream.write(struct.pack("<Q", len(text)) + text)
    for part in parts:
        stream.write(part)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """The next message.

    Raises:
      EOFError: the other side is gone.
    """
    header = json.loads(_exactly(stream, struct.unpack("<Q", _exactly(stream, 8))[0]))
    return header, [_exactly(stream, length) for length in header.pop("parts")]


def _exactly(stream: IO[bytes], length: int) -> bytes:
    found = stream.read(length)
    if len(found) != length:
        raise EOFError("the other side is gone")
    return found
