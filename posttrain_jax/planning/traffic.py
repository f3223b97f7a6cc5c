"""HBM traffic of an instruction: operands and results that do not lie in VMEM; of a sliced operand only the slice.

An update in place reads and writes what it updates. Where it is not in place the compiler copies first, by a copy of
its own.
"""

from __future__ import annotations

from posttrain_jax.planning.hlo import Array, Computation, Instruction, Module

SLICES = ("dynamic-slice", "slice", "gather")
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # and which operand is the update
NO_TRAFFIC = ("copy-done", "slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "opt-barrier")


def traffic(module: Module, computation: Computation, one: Instruction) -> float:
    """Bytes that an instruction reads from HBM and writes to it."""
    if one.opcode in NO_TRAFFIC:
        return 0.0
    if one.opcode in SLICES:
        return 2 * _in_hbm(one.arrays)
    if one.opcode in UPDATES:
        return 2 * _in_hbm(computation.by_name[one.operands[UPDATES[one.opcode]]].arrays)
    inner = next(iter(module.called(one)), None) if one.opcode == "fusion" else None
    if inner is None:
        return sum(_in_hbm(computation.by_name[name].arrays) for name in one.operands) + _in_hbm(one.arrays)
    read = 0.0
    for parameter in (i for i in inner.instructions if i.opcode == "parameter"):
        place = int(parameter.inside)
        if place < len(one.operands):
            read += _read(inner, parameter, computation.by_name[one.operands[place]].arrays)
    return read + _written(inner, one)


def _in_hbm(arrays: tuple[Array, ...]) -> float:
    return sum(a.bytes for a in arrays if a.in_hbm)


def _read(inner: Computation, parameter: Instruction, arrays: tuple[Array, ...]) -> float:
    """Of an operand of a fusion: slices where nothing but slices of it are used, nothing where it is only written."""
    whole = _in_hbm(arrays)
    users = inner.users.get(parameter.name, [])
    if whole and users and all(user.opcode in SLICES and user.operands[0] == parameter.name for user in users):
        return min(sum(a.bytes for user in users for a in user.arrays), whole)
    if users and all(user.opcode in UPDATES and user.operands[0] == parameter.name for user in users):
        return 0.0
    return whole


def _written(inner: Computation, fusion: Instruction) -> float:
    """The result of a fusion, or the part of it that an update writes."""
    roots = [inner.by_name[name] for name in inner.root.operands] if inner.root.opcode == "tuple" else [inner.root]
    if len(roots) != len(fusion.arrays):
        return _in_hbm(fusion.arrays)
    total = 0.0
    for root, array in zip(roots, fusion.arrays, strict=True):
        while root.opcode == "bitcast" and root.operands[0] in inner.by_name:
            root = inner.by_name[root.operands[0]]
        if root.opcode in UPDATES and array.in_hbm:
            total += 2 * sum(a.bytes for a in inner.by_name[root.operands[UPDATES[root.opcode]]].arrays)
        else:
            total += array.bytes if array.in_hbm else 0.0
    return total
