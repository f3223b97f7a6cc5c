"""Compiled HLO text as computations of instructions: shapes, operands, and what loops and calls contain."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "token": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape; ``in_hbm`` is False for what the compiler keeps in VMEM or registers."""

    kind: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def bytes(self) -> float:
        """Without the padding of its tiles."""
        digits = re.findall(r"\d+", self.kind)
        return math.prod(self.dims) * (BITS[self.kind] if self.kind in BITS else int(digits[0])) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """``%name = shape opcode(operands), attributes``."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Of its result, a tuple's in order."""
        return tuple(arrays(self.shape))

    def attribute(self, name: str) -> str | None:
        """The computation that an attribute such as ``body=%…`` names."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    def number(self, key: str) -> float:
        """A number of the backend's configuration; 0 where it says nothing."""
        found = re.search(rf'"{key}":"?(-?[\d.]+)', self.attributes)
        return float(found[1]) if found else 0.0

    @property
    def source(self) -> str:
        """The path of the operation in the program it came from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order they are issued."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Each instruction."""
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each one."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(i for i in reversed(self.instructions) if i.root)


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: Computation

    def called(self, instruction: Instruction) -> list[Computation]:
        """What a fusion, a call or a conditional runs; not the body of a loop."""
        names = [instruction.attribute("calls"), instruction.attribute("to_apply")]
        if instruction.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            names = _NAME.findall(branches[1]) if branches else []
            names += [instruction.attribute(f"{which}_computation") for which in ("true", "false")]
        return [self.computations[name] for name in names if name in self.computations]


def arrays(shape: str) -> Iterator[Array]:
    """The arrays of a shape as HLO writes it."""
    for kind, dims, layout in _ARRAY.findall(shape):
        yield Array(kind, tuple(map(int, filter(None, dims.split(",")))), not re.search(r"S\([1-4]\)", layout))


def read(text: str) -> Module:
    """The computations of ``compiled.as_text()``.

    Raises:
      ValueError: it is no HLO with an entry.
    """
    computations, entry, body, name = {}, None, None, ""
    for line in _lines(text):
        if body is None:
            if line.endswith("{") and (found := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
                body, name = [], found[2]
                entry = name if found[1] else entry
        elif _ends(line):
            computations[name], body = Computation(name, tuple(body)), None
        elif (instruction := _instruction(line)) is not None:
            body.append(instruction)
    if entry is None:
        raise ValueError("the text has no ENTRY computation")
    return Module(computations, computations[entry])


def _lines(text: str) -> Iterator[str]:
    """Lines of the text; of an instruction's, whose configuration may go over several, one."""
    whole = ""
    for line in text.splitlines():
        if whole.startswith("  ") and not _ends(line) and not line.startswith("  "):
            whole += line
            continue
        if whole:
            yield whole
        whole = line
    yield whole


def _ends(line: str) -> bool:
    """Whether a computation does; one for another core of the chip says so behind its brace."""
    return line == "}" or line.startswith("}, execution_thread=")


def _instruction(line: str) -> Instruction | None:
    head, equals, rest = line.strip().partition(" = ")
    if not equals:
        return None
    # a tuple's shape has parentheses of its own, which end before the opcode
    end = _closing(rest, 0) if rest.startswith("(") else 0
    found = _OPCODE.search(rest, max(end - 1, 0))
    if found is None:
        return None
    close = _closing(rest, found.end() - 1)
    inside = rest[found.end() : close - 1]
    return Instruction(
        name=head.removeprefix("ROOT ").lstrip("%"),
        shape=rest[: found.start()],
        opcode=found[1],
        operands=tuple(_NAME.findall(inside)),
        inside=inside,
        attributes=rest[close:],
        root=head.startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    """Just behind the parenthesis that closes the one at ``start``."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a ``while`` in ``computation`` runs, where its text says so; None where it depends on data.

    Read from ``known_trip_count``, or from a counter that starts at a constant, grows by one, and is compared with a
    constant.
    """
    told = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
    if told:
        return int(told[1])
    condition = module.computations[loop.attribute("condition") or ""]
    test, place = condition.root, condition
    bound = {}
    if test.opcode == "fusion" and (inner := module.called(test)):
        place = inner[0]
        bound = dict(zip(_parameters(place), test.operands, strict=False))
        test = place.root
    if test.opcode != "compare" or len(test.operands) != 2:
        return None

    def outside(name: str) -> Instruction | None:
        found = place.by_name[name]
        while found.opcode in ("copy", "bitcast", "parameter") and not (
            found.opcode == "parameter" and place is condition
        ):
            name = bound.get(found.name, found.operands[0] if found.operands else "")
            holder = condition if found.name in bound else place
            if name not in holder.by_name:
                return None
            found = holder.by_name[name]
        return found

    sides = [outside(name) for name in test.operands]
    numbers = [int(side.inside) if side and side.opcode == "constant" and side.inside.lstrip("-").isdecimal() else None
               for side in sides]  # fmt: skip
    direction = re.search(r"direction=(\w+)", test.attributes)
    counter = next((s for s, n in zip(sides, numbers, strict=True) if n is None and s), None)
    if counter is None or counter.opcode != "get-tuple-element" or direction is None or numbers.count(None) != 1:
        return None
    (limit,) = [n for n in numbers if n is not None]
    index = re.search(r"index=(\d+)", counter.attributes)
    first = _start(computation, loop, int(index[1])) if index else None
    if first is None or direction[1] not in ("LT", "GT", "LE", "GE", "NE"):
        return None
    return max(abs(limit - first) + (direction[1] in ("LE", "GE")), 0)


def _parameters(computation: Computation) -> list[str]:
    found = [i for i in computation.instructions if i.opcode == "parameter"]
    return [i.name for i in sorted(found, key=lambda i: int(i.inside))]


def _start(computation: Computation, loop: Instruction, index: int) -> int | None:
    """The constant that a loop's counter begins with; 0 where it is made by an operation of its own."""
    whole = computation.by_name.get(loop.operands[0])
    if whole is None or whole.opcode != "tuple":
        return 0
    first = computation.by_name.get(whole.operands[index])
    while first is not None and first.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        first = computation.by_name.get(first.operands[0])
    if first is not None and first.opcode == "constant" and first.inside.lstrip("-").isdecimal():
        return int(first.inside)
    return 0
