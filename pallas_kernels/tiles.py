"""Tile sizes for each chip generation, from ``tiles.json``, which ``python -m pallas_kernels.tune`` regenerates."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
from jax.experimental.pallas import tpu as pltpu

TABLE = Path(__file__).with_name("tiles.json")
# what a TPU calls itself -> the name in the table
KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}
_chip: ContextVar[str | None] = ContextVar("chip", default=None)
_changed: ContextVar[dict[str, Any] | None] = ContextVar("changed", default=None)
_interpreted: ContextVar[pltpu.InterpretParams | None] = ContextVar("interpreted", default=None)


@functools.cache
def table() -> dict[str, dict[str, dict[str, int]]]:
    """Kernel -> chip -> named tile sizes."""
    return json.loads(TABLE.read_text())


def chip() -> str:
    """The chip that is compiled for: the one named by ``compiling_for``, else the attached one, else v5p."""
    return _chip.get() or KINDS.get(jax.devices()[0].device_kind, "v5p")


def named_chip() -> str | None:
    """The chip named by ``compiling_for``, if any."""
    return _chip.get()


def lookup(kernel: str) -> dict[str, int]:
    """Tile sizes of a kernel on the chip that is compiled for."""
    return {**table()[kernel][chip()], **((_changed.get() or {}).get(kernel) or {})}


def interpret() -> Any:
    """What a TPU kernel's ``interpret`` argument is now: False, or the simulation that ``interpreting`` asked for."""
    return _interpreted.get() or False


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is at most ``most``."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


@contextlib.contextmanager
def compiling_for(chip: str, **changed: dict[str, int]) -> Iterator[None]:
    """Takes the tile sizes of another chip than the attached one; ``kernel={"name": size}`` replaces some.

    Raises:
      ValueError: a chip of which the table knows nothing.
    """
    known = sorted({c for chips in table().values() for c in chips})
    if chip not in known:
        raise ValueError(f"chip={chip!r} is not one of {', '.join(known)}")
    named, sizes = _chip.set(chip), _changed.set(changed)
    try:
        yield
    finally:
        _chip.reset(named)
        _changed.reset(sizes)


@contextlib.contextmanager
def interpreting(params: pltpu.InterpretParams | None = None) -> Iterator[None]:
    """Runs TPU kernels traced inside on the CPU, in JAX's TPU simulation."""
    token = _interpreted.set(params or pltpu.InterpretParams())
    try:
        yield
    finally:
        _interpreted.reset(token)
