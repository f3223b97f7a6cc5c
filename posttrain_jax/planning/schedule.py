"""A compiled program walked in the order it is issued: time, work and traffic, with loops counted out.

Four things run side by side: the core, copies between HBM and VMEM, the links, and the network between slices. What is
started early is waited for where its result is asked for; the rest takes its turn. An instruction's time on the core is
the compiler's own estimate in cycles; a kernel's the larger of its FLOPs over the peak and its bytes over the
bandwidth; where there is neither, the same of its products and bytes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict

from pallas_kernels.tpu_compiler import read_kernel
from posttrain_jax.planning import collectives, hlo
from posttrain_jax.planning.chips import Chip
from posttrain_jax.planning.collectives import Collective, Layout
from posttrain_jax.planning.flops import product_flops
from posttrain_jax.planning.hlo import Computation, Instruction, Module
from posttrain_jax.planning.traffic import traffic

STARTS = ("async-start", "call-start")  # of computations that run beside the core; calls on another core of the chip
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}


@dataclasses.dataclass
class Totals:
    """What a program, or one turn of a loop, does on one device.

    Attributes:
      seconds: from start to end, with waiting.
      core: of them, the core's own work.
      kernel: of that, our kernels.
      waiting: seconds the core waits for links.
      copying: seconds it waits for copies from or to HBM.
      flops: of products and kernels.
      hbm: bytes read and written.
      cycles: the compiler's estimates.
      collectives: (kind, axes) -> [times, bytes, seconds on the links].
      sources: seconds of the core beyond its FLOPs at the peak, by place in the program.
      assumed: loops inside others whose turns depend on data, and were assumed.
    """

    seconds: float = 0.0
    core: float = 0.0
    kernel: float = 0.0
    waiting: float = 0.0
    copying: float = 0.0
    flops: float = 0.0
    hbm: float = 0.0
    cycles: float = 0.0
    collectives: dict[tuple[str, tuple[str, ...]], list[float]] = dataclasses.field(default_factory=dict)
    sources: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    assumed: int = 0

    def add(self, other: Totals, times: float = 1.0) -> None:
        """Counts another part's work ``times`` over."""
        for name in ("seconds", "core", "kernel", "waiting", "copying", "flops", "hbm", "cycles"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for key, numbers in other.collectives.items():
            mine = self.collectives.setdefault(key, [0.0, 0.0, 0.0])
            self.collectives[key] = [a + times * b for a, b in zip(mine, numbers, strict=True)]
        for source, seconds in other.sources.items():
            self.sources[source] += times * seconds
        self.assumed += other.assumed

    def count(self, found: Collective) -> None:
        """Counts a collective."""
        mine = self.collectives.setdefault((found.kind, found.axes), [0.0, 0.0, 0.0])
        for place, number in enumerate((1.0, found.bytes, found.seconds)):
            mine[place] += number

    @property
    def links(self) -> float:
        """Seconds of work for the links."""
        return sum(numbers[2] for numbers in self.collectives.values())


class Clock:
    """The core, the copies and the links while one computation is issued."""

    def __init__(self, total: Totals):
        self.total, self.now, self.links_free, self.copies_free, self.slices_free = total, 0.0, 0.0, 0.0, 0.0
        self.sent: dict[str, float] = {}  # between slices: when what was sent is there, by rendezvous
        self.ready: dict[str, tuple[float, str]] = {}  # what is under way: when it is there, and what it is waited for
        self.chains: list[float] = []  # exchanges that began inside a fusion, the oldest first

    def copy(self, name: str, seconds: float) -> None:
        """Begins a copy, which is waited for by `name`."""
        self.copies_free = max(self.copies_free, self.now) + seconds
        self.ready[name] = self.copies_free, "copying"

    def exchange(self, found: Collective) -> float:
        """Begins an exchange; returns when it is over."""
        self.total.count(found)
        self.links_free = max(self.links_free, self.now) + found.seconds
        return self.links_free

    def send(self, found: Collective, rendezvous: str) -> None:
        """Begins an exchange between slices."""
        self.total.count(found)
        self.slices_free = self.sent[rendezvous] = max(self.slices_free, self.now) + found.seconds

    def wait(self, until: float, what: str = "waiting") -> None:
        """The core stands still until then."""
        lost = max(until - self.now, 0.0)
        setattr(self.total, what, getattr(self.total, what) + lost)
        self.now += lost


class Walk:
    """Walks the computations of one module, each once."""

    def __init__(self, module: Module, layout: Layout, turns: int = 1, rounds: int = 1, chip: Chip | None = None):
        """Of loops whose turns depend on data the outermost takes ``turns``, others ``rounds``; ``chip`` stands in."""
        self.module, self.layout, self.turns, self.rounds = module, layout, turns, rounds
        self.chip = chip or layout.part.chip
        self._kept: dict[tuple[str, bool], Totals] = {}
        self._inside = functools.cache(self._exchanges)

    def whole(self) -> Totals:
        """The program from its entry."""
        return self._walk(self.module.entry, outermost=True)

    def _walk(self, computation: Computation, outermost: bool) -> Totals:
        key = computation.name, outermost
        if key not in self._kept:
            self._kept[key] = self._run(computation, outermost)
        return self._kept[key]

    def _run(self, computation: Computation, outermost: bool) -> Totals:
        total = Totals()
        clock = Clock(total)
        for one in computation.instructions:
            op, source = one.opcode, one.operands[0] if one.operands else ""
            if op in FREE:
                continue
            if op == "while":
                clock.now += self._loop(computation, one, outermost, total)
            elif op in ("conditional", "call"):
                clock.now += self._branch(one, outermost, total)
            elif meeting := collectives.rendezvous(one):
                if op == "send":
                    clock.send(collectives.between_slices(one, self.layout), meeting)
            elif op in ("send-done", "recv-done") and source in computation.by_name:
                clock.wait(clock.sent.get(collectives.rendezvous(computation.by_name[source]) or "", clock.now))
            elif op.endswith("-done") and source in clock.ready:
                clock.wait(*clock.ready.pop(source))
            elif op.endswith("-update") and source in clock.ready:
                clock.ready[one.name] = clock.ready.pop(source)
            elif op in ("copy-start", "slice-start"):
                moved = sum(a.bytes for a in one.arrays[1:2])
                total.hbm += moved
                clock.copy(one.name, moved / self.chip.hbm_bandwidth)
            else:
                self._issue(computation, one, clock)
        clock.wait(max(clock.links_free, clock.slices_free))
        total.seconds = clock.now
        return total

    def _loop(self, computation: Computation, one: Instruction, outermost: bool, total: Totals) -> float:
        turns = hlo.trip_count(self.module, computation, one)
        body = self._walk(self.module.computations[one.attribute("body") or ""], outermost and turns is not None)
        if turns is None:
            turns = self.turns if outermost else self.rounds
            total.assumed += not outermost
        total.add(body, turns)
        return turns * body.seconds

    def _branch(self, one: Instruction, outermost: bool, total: Totals) -> float:
        """Of the branches of a conditional the longest."""
        parts = [self._walk(called, outermost) for called in self.module.called(one)]
        longest = max(parts, key=lambda part: part.seconds, default=Totals())
        total.add(longest)
        return longest.seconds

    def _issue(self, computation: Computation, one: Instruction, clock: Clock) -> None:
        """An instruction of the core, with the exchanges that it does, begins or ends."""
        core = self._core(computation, one, clock.total)
        ends = False
        for found, begins, under_way in self._collectives(one):
            if under_way:
                ends = True
                continue
            over = clock.exchange(found)
            if begins and one.opcode.endswith("-start"):
                clock.ready[one.name] = over, "waiting"
            elif begins:
                clock.chains.append(over)
            else:
                clock.wait(over)
        clock.now += core
        if ends and clock.chains:
            clock.wait(clock.chains.pop(0))

    def _collectives(self, one: Instruction) -> list[tuple[Collective, bool, bool]]:
        """The exchanges of an instruction: whether each only begins here, and whether it began earlier."""
        if collectives.kind_of(one):
            return [(collectives.collective(one, self.layout), one.opcode.endswith("-start"), False)]
        if one.opcode not in ("fusion", *STARTS):
            return []
        found = [each for called in self.module.called(one) for each in self._inside(called.name)]
        return [(each, True, False) for each, *_ in found] if one.opcode in STARTS else found

    def _exchanges(self, name: str) -> tuple[tuple[Collective, bool, bool], ...]:
        """The same of a fusion's computation; an exchange under way passes through others until its end."""
        computation = self.module.computations[name]
        found = []
        scattered = name.startswith("all-reduce-scatter")
        for one in computation.instructions:
            if collectives.kind_of(one):
                users = " ".join(user.attributes for user in computation.users.get(one.name, []))
                begins, ends = "AsyncCollectiveStart" in users, "AsyncCollectiveDone" in users
                if begins or ends or "async_collective" not in name:
                    found.append((collectives.collective(one, self.layout, scattered), begins, ends))
        return tuple(found)

    def _core(self, computation: Computation, one: Instruction, total: Totals) -> float:
        """Seconds of the core, which with the work are counted in ``total``."""
        cycles = one.number("estimated_cycles")
        flops, moved = (count(self.module, computation, one) for count in (product_flops, traffic))
        seconds = cycles / self.chip.clock
        call = self._kernel(one)
        if call is not None:
            kernel = read_kernel(f"%{call.name} = {call.shape} {call.opcode}({call.inside}){call.attributes}")
            flops, moved = kernel.flops, kernel.moved_bytes or kernel.least_bytes
            seconds = max(flops / self.chip.peak, moved / self.chip.hbm_bandwidth)
            total.kernel += seconds
        elif not cycles and any(begins or ends for _, begins, ends in self._collectives(one)):
            moved = 0.0  # only names what is under way
        elif not cycles and collectives.kind_of(one) is None and one.opcode not in (*STARTS, "async-done", "call-done"):
            seconds = max(flops / self.chip.peak, moved / self.chip.hbm_bandwidth)
        total.flops += flops
        total.hbm += moved
        total.cycles += max(cycles, 0.0)
        total.core += seconds
        total.sources[one.source] += max(seconds - flops / self.chip.peak, 0.0)
        return seconds

    def _kernel(self, one: Instruction) -> Instruction | None:
        """The call of a kernel that an instruction is, or is fused with an exchange under way."""
        inside = (
            [i for called in self.module.called(one) for i in called.instructions] if one.opcode == "fusion" else [one]
        )
        kernels = (i for i in inside if i.opcode == "custom-call" and '"tpu_custom_call"' in i.attributes)
        return next(kernels, None)
