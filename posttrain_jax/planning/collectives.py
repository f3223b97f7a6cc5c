"""Collectives of a compiled program: between which devices, along which mesh axes, and for how long on the torus.

With n devices in a group that lie along rings or lines of the torus, bytes B of the whole array, and a bandwidth W of
the links that a device has along the group's axes (two for a ring, one for a line; ring neighbours s apart share
links with s - 1 other groups):

    all-gather, reduce-scatter   B (n - 1) / n / W        all-reduce   twice that
    all-to-all                   B_device k / (8 w) on a ring of k, k / (4 w) on a line: what crosses the middle
    collective-permute           B_device · hops / w      with w one link

and a microsecond for each link that the longest way has. Between s slices an all-reduce of a device's B bytes sends
2 B (s - 1) / s over the data centre's network, whatever else B (s - 1) or B (s - 1) / s: what it gathers, or scatters.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from posttrain_jax.planning.chips import Slice
from posttrain_jax.planning.hlo import Instruction

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")
BETWEEN = " between slices"  # after the kind
HOP = 1e-6  # seconds
Groups = np.ndarray  # [groups, devices of each]; of a permute [pairs, 2]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the devices of a mesh are: ``device i`` of the program is the mesh's i-th.

    Attributes:
      axes: of the mesh, with sizes.
      part: the chips.
      coordinates: [devices, axes of the torus].
    """

    axes: dict[str, int]
    part: Slice
    coordinates: np.ndarray


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: one of `KINDS`, with `BETWEEN` where it goes from slice to slice.
      axes: the mesh axes it runs along, such as ("fsdp",).
      bytes: what a device sends over its links.
      seconds: what that takes with nothing else on the links.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    seconds: float


def kind_of(instruction: Instruction) -> str | None:
    """The kind of a collective, synchronous or started; None for other instructions."""
    name = instruction.opcode.removesuffix("-start")
    return name if name in KINDS else None


def collective(instruction: Instruction, layout: Layout, scattered: bool = False) -> Collective:
    """What an instruction of a known kind costs; ``scattered`` for an all-reduce of which each keeps only its share."""
    kind = kind_of(instruction) or ""
    groups = read_groups(instruction, layout)
    size = payload(instruction, kind)
    if kind == "all-reduce" and scattered:
        kind = "reduce-scatter"
    n = groups.shape[1]
    axes = axes_of(groups, layout.axes)
    if n <= 1:
        return Collective(kind, axes, 0.0, 0.0)
    chip = layout.part.chip
    link = chip.link / chip.devices  # devices of one chip share its links
    ways = [_way(groups[0], axis, layout) for axis in range(layout.coordinates.shape[1])]
    used = [way for way in ways if way[0] > 1]
    if kind == "collective-permute":
        moved = groups[groups[:, 0] != groups[:, 1]]
        sent = size if len(moved) else 0.0
        hops = _hops(moved, layout)
        return Collective(kind, axes, sent, hops * (HOP + sent / link))
    latency = HOP * sum((k - 1) * stride / (2 if ring else 1) for k, stride, ring in used)
    share = (n - 1) / n
    if kind in ("all-to-all", "ragged-all-to-all"):
        longest = max((k * stride / (8 if ring else 4) for k, stride, ring in used), default=0.25)
        return Collective(kind, axes, size * share, latency + size * longest / link)
    sent = size * share * (2 if kind == "all-reduce" else 1)
    bandwidth = sum(link * (2 if ring else 1) / stride for _, stride, ring in used) or 4 * link
    return Collective(kind, axes, sent, latency + sent / bandwidth)


def rendezvous(instruction: Instruction) -> str | None:
    """What the two ends of an exchange between slices share; None for other instructions."""
    if instruction.opcode not in ("send", "recv") or "xla_megascale_runtime" not in instruction.attributes:
        return None
    found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.attributes)
    return found[1] if found else ""


def between_slices(send: Instruction, layout: Layout) -> Collective:
    """What the sending end of an exchange between slices costs; only the mesh axis ``data`` goes over slices."""
    found = re.search(r'_xla_megascale_transfer_type="([^"]*)"', send.attributes)
    kind = found[1].lower().replace("_", "-") if found else "exchange"
    count = layout.part.count
    share = {"all-reduce": 2 / count, "reduce-scatter": 1 / count, "all-to-all": 1 / count}.get(kind, 1.0)
    sent = send.arrays[0].bytes * (count - 1) * share
    return Collective(kind + BETWEEN, ("data",), sent, sent * layout.part.chip.devices / layout.part.chip.dcn)


def payload(instruction: Instruction, kind: str) -> float:
    """Bytes of the whole array for gathers and reductions, of a device's own part for the others."""
    arrays = [a for a in instruction.arrays if a.dims or len(instruction.arrays) == 1]
    if instruction.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        arrays = arrays[len(arrays) // 2 :] if len(arrays) > 1 else arrays  # operands come first
    total = sum(a.bytes for a in arrays)
    if kind == "reduce-scatter":
        total *= _group_size(instruction)
    return total


def read_groups(instruction: Instruction, layout: Layout) -> Groups:
    """The devices that exchange, in any of the forms in which HLO writes them."""
    text = instruction.attributes
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", text)
    if pairs:
        return np.array([[int(x) for x in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])])
    count = int(np.prod(list(layout.axes.values())))
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}", text
    )
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        ids = _iota(named[2], named[3], count).reshape(list(sizes.values()))
        along = re.findall(r"'([^']+)'(?!:)", named[4])
        chosen = [list(sizes).index(name) for name in along if name in sizes]
        rest = [axis for axis in range(ids.ndim) if axis not in chosen]
        width = int(np.prod([ids.shape[axis] for axis in chosen]))
        return ids.transpose(*rest, *chosen).reshape(-1, width)
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text)
    if listed:
        return np.array([[int(x) for x in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        return _iota(iota[2], iota[3], count).reshape([int(x) for x in iota[1].split(",")])
    return np.arange(count)[None]


def axes_of(groups: Groups, axes: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ."""
    places = np.stack(np.unravel_index(groups, list(axes.values())))  # [axes, groups, members]
    differ = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(name for name, moves in zip(axes, differ, strict=True) if moves)


def _iota(sizes: str | None, order: str | None, count: int) -> np.ndarray:
    if sizes is None:
        return np.arange(count)
    ids = np.arange(count).reshape([int(x) for x in sizes.split(",")])
    return ids.transpose([int(x) for x in order.split(",")]) if order else ids


def _group_size(instruction: Instruction) -> int:
    operand = re.search(r"replica_groups=\{\{([\d,]+)\}", instruction.attributes)
    if operand:
        return operand[1].count(",") + 1
    iota = re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", instruction.attributes)
    if iota:
        return int(iota[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", instruction.attributes)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        return int(np.prod([sizes[name] for name in re.findall(r"'([^']+)'", named[2])]))
    return 1


def _way(group: np.ndarray, axis: int, layout: Layout) -> tuple[int, int, bool]:
    """Members along an axis of the torus, how far apart neighbours are, and whether they close a ring."""
    places = sorted(set(layout.coordinates[group, axis].tolist()))
    length = layout.part.shape[axis]
    stride = max((places[-1] - places[0]) // max(len(places) - 1, 1), 1)
    ring = length % layout.part.chip.wraps == 0 and len(places) * stride == length and len(places) > 2
    return len(places), stride, ring


def _hops(pairs: np.ndarray, layout: Layout) -> float:
    """Links on the longest way from a source to its target."""
    if not len(pairs):
        return 0.0
    shape = np.array(layout.part.shape)
    apart = abs(layout.coordinates[pairs[:, 0]] - layout.coordinates[pairs[:, 1]])
    rings = shape % layout.part.chip.wraps == 0
    apart = np.where(rings, np.minimum(apart, shape - apart), apart)
    return float(max(apart.sum(axis=1).max(), 1))


def describe(axes: Sequence[str]) -> str:
    """Mesh axes in words."""
    return "+".join(axes) if axes else "none"
