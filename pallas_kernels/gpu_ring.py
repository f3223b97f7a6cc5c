"""A ring of tiles in the shared memory of an NVIDIA SM: one warpgroup fills it by TMA, two multiply what is in it.

A stage of the ring holds the operands of one step. ``full`` says that a stage's copies have arrived, ``free`` that both
warpgroups have done with it. Steps are counted through from the first product of a block of threads to its last, so the
ring is being filled for the next product while the result of this one is finished and stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

WARPGROUPS = 2  # that multiply; the one after them copies
LINE = 64  # numbers of 16 bits in the 128 bytes over which shared memory is swizzled
COPYING_REGISTERS, MULTIPLYING_REGISTERS = 40, 232  # a thread; 128 · (40 + 2 · 232) of the 65,536 there are

Range = Any  # of a Ref: an index, or a slice


def swizzled(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
    """Shared memory in the order in which the matrix units read and TMA writes."""
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, LINE)), plgpu.SwizzleTransform(128)))


def ring_types(stages: int, *blocks: tuple[int, int]) -> dict[str, Any]:
    """What to allocate for a ring whose stages hold a tile of each of these shapes."""
    return {
        "tiles": [swizzled(stages, *block) for block in blocks],
        "full": plgpu.Barrier(num_arrivals=len(blocks), num_barriers=stages),
        "free": plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
    }


class Ring(NamedTuple):
    """The ring as a kernel sees it.

    Attributes:
      tiles: for each operand ``[stages, …]``.
      full, free: a barrier for each stage.
    """

    tiles: Sequence[Any]
    full: Any
    free: Any

    def fill(self, first: jax.Array, steps: jax.Array | int, sources: Callable[[jax.Array, Callable], None]) -> None:
        """Copies the operands of steps ``first : first + steps``; ``sources(k, copy)`` calls ``copy`` with them."""
        stages = self.tiles[0].shape[0]

        def step(k, _):
            slot = jax.lax.rem(first + k, jnp.int32(stages))

            @pl.when(first + k >= stages)
            def _():
                plgpu.barrier_wait(self.free.at[slot])

            def copy(*operands):
                for source, tile in zip(operands, self.tiles, strict=True):
                    plgpu.copy_gmem_to_smem(source, tile.at[slot], self.full.at[slot])

            sources(k, copy)

        jax.lax.fori_loop(0, steps, step, None)

    def drain(self, steps: Any) -> None:
        """Waits, after ``steps`` in all, until every stage is free."""
        for slot in range(self.tiles[0].shape[0]):

            @pl.when(slot < steps)
            def _(slot=slot):
                plgpu.barrier_wait(self.free.at[slot])

    def multiply(self, first: jax.Array, steps: jax.Array | int, start: Callable[..., None], products: int = 1) -> None:
        """Starts ``products`` products with ``start(*tiles)`` in each step; all are done at the end.

        A stage is given back one step later than its products are started: these run meanwhile.
        """
        stages = self.tiles[0].shape[0]
        slot_of = lambda k: jax.lax.rem(first + k, jnp.int32(stages))  # noqa: E731

        def step(k, _):
            slot = slot_of(k)
            plgpu.barrier_wait(self.full.at[slot])
            start(*(tile.at[slot] for tile in self.tiles))
            plgpu.wgmma_wait(products)

            @pl.when(k > 0)
            def _():
                plgpu.barrier_arrive(self.free.at[slot_of(k - 1)])

        jax.lax.fori_loop(0, steps, step, None)
        plgpu.wgmma_wait(0)

        @pl.when(steps > 0)
        def _():
            plgpu.barrier_arrive(self.free.at[slot_of(steps - 1)])


def specialized(copying: Callable[[], None], multiplying: Callable[[jax.Array], None]) -> None:
    """Runs ``multiplying(warpgroup)`` in the first warpgroups and ``copying()`` in the last one."""
    warpgroup = jax.lax.axis_index("warpgroup")

    @pl.when(warpgroup == WARPGROUPS)
    def _():
        plgpu.set_max_registers(COPYING_REGISTERS, action="decrease")
        copying()

    @pl.when(warpgroup < WARPGROUPS)
    def _():
        plgpu.set_max_registers(MULTIPLYING_REGISTERS, action="increase")
        multiplying(warpgroup)
