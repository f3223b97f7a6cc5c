"""TPU chips as numbers, and slices of them by name, such as ``v5p:4x4x8``, or ``v5p:4x4x8@2`` for two that the data
centre's network joins. Imports no JAX.

Peaks, memory and bandwidths are those of Google's pages for each generation (cloud.google.com/tpu/docs/v5e, v5p, v6e,
tpu7x: "key specifications"). They give the interconnect of a chip in both directions together: 400, 1200, 800 and 1200
GB/s over 4, 6, 4 and 6 links, so that a link carries half its share each way. To other slices they give v5p 50, v6e
and tpu7x 100 Gbit/s a chip, and v5e 200 a host of eight. (The memory of v5e and v6e also goes by the rounder 800 and
1600 GB/s there.) The clock is the one at which the compiler's cycles of a matrix product meet the peak: peak / (FLOPs
of all matrix units in a cycle). With it a large product of bfloat16 is estimated by the compiler at 88, 90, 70 and 81 %
of the peak.
"""

from __future__ import annotations

import dataclasses
import difflib
import math

from posttrain_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX sees it, of which a chip may have several.

    Attributes:
      peak: bfloat16 FLOP/s.
      hbm: bytes of memory.
      hbm_bandwidth: bytes/s.
      link: bytes/s of one link of the interconnect in one direction.
      dcn: bytes/s to chips of other slices, over the data centre's network.
      clock: cycles/s of the compiler's estimates.
      axes: of the torus.
      wraps: an axis of a slice is a ring where its length is a multiple of this, else a line.
      devices: on a chip.
    """

    peak: float
    hbm: float
    hbm_bandwidth: float
    link: float
    dcn: float
    clock: float
    axes: int
    wraps: int
    devices: int = 1


GIB = 2**30
CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, 819e9, 50e9, 3.125e9, 1.5e9, axes=2, wraps=16),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 100e9, 6.25e9, 1.75e9, axes=3, wraps=4),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 100e9, 12.5e9, 1.75e9, axes=2, wraps=16),
    "tpu7x": Chip(2307e12 / 2, 96 * GIB, 7380e9 / 2, 100e9, 12.5e9, 2.2e9, axes=3, wraps=4, devices=2),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A box of chips, or several alike.

    Attributes:
      kind: the chip's name.
      shape: chips along each axis of a box, as many as the torus has.
      count: boxes.
    """

    kind: str
    shape: tuple[int, ...]
    count: int = 1

    @property
    def chip(self) -> Chip:
        """Its numbers."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.shape) * self.count

    @property
    def devices(self) -> int:
        """How many JAX sees."""
        return self.chips * self.chip.devices

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}" + (f"@{self.count}" if self.count > 1 else "")

    def doubled(self) -> Slice:
        """The next larger one: twice as long along its shortest axis, the last of equals."""
        axis = min(range(len(self.shape)), key=lambda a: (self.shape[a], -a))
        return dataclasses.replace(self, shape=tuple(n * (1 + (a == axis)) for a, n in enumerate(self.shape)))


def read_slice(name: str) -> Slice:
    """What a name such as ``v5e:2x2``, ``v5p:4x4x8`` or ``v5p:4x4x8@2`` asks for.

    Raises:
      UserError: no such chip or shape; says the nearest one.
    """
    kind, colon, rest = name.partition(":")
    text, at, count = rest.partition("@")
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.0)[0]
        example = f"{near}:{text}" if colon and text else f"{near}:{_example(near)}"
        raise UserError(f"--topology={name}: no chip {kind!r}; the nearest is {example} (chips: {', '.join(CHIPS)})")
    axes = CHIPS[kind].axes
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UserError(f"--topology={name}: expected chips along each axis, such as {kind}:{_example(kind)}")
    if at and not (count.isdecimal() and int(count) > 0):
        raise UserError(f"--topology={name}: after @ stands how many slices there are; the nearest is {kind}:{text}@2")
    asked = [int(size) for size in sizes]
    good = (asked + [1] * axes)[:axes]
    if any(n > 1 for n in good):  # whole hosts of 2 x 2 chips
        good = [n + n % 2 for n in good[:2]] + good[2:]
    if asked != good:
        raise UserError(
            f"--topology={name}: a slice of {kind} has {axes} axes, and its hosts hold 2x2 chips; the nearest is"
            f" {kind}:{'x'.join(map(str, good))}{at}{count}"
        )
    return Slice(kind, tuple(good), int(count or 1))


def _example(kind: str) -> str:
    return "x".join("4" * CHIPS[kind].axes)
