"""What one step of a TPU kernel works on: blocks of positions of some heads."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax.experimental import pallas as pl

from pallas_kernels import tiles

LANES = 128
SUBLANES = 8


class Step(NamedTuple):
    """Blocks of ``q_block`` queries and ``k_block`` keys; ``kv`` key/value heads with ``group`` query heads each."""

    batch: int
    length: int
    kv_length: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    itemsize: int
    q_block: int
    k_block: int
    kv: int
    group: int
    vmem: int

    @property
    def together(self) -> int:
        """Query heads of a step."""
        return self.kv * self.group

    @property
    def parts(self) -> int:
        """Steps it takes for all query heads of ``kv`` key/value heads."""
        return self.heads // self.kv_heads // self.group

    @property
    def rows(self) -> int:
        """``together``, filled up to whole tiles: one row of numbers for each query head."""
        return up_to(self.together, SUBLANES)

    @property
    def q_blocks(self) -> int:
        return pl.cdiv(self.length, self.q_block)

    @property
    def k_blocks(self) -> int:
        return pl.cdiv(self.kv_length, self.k_block)

    @property
    def pairs(self) -> int:
        """Pairs of a query head and a key that causality leaves, if the queries are the last of the positions."""
        before = max(self.kv_length - self.length, 0)
        return self.batch * self.heads * self.length * (2 * before + self.length + 1) // 2

    def cost(self, products: int, exponents: int, blocks: int, writes: int) -> pl.CostEstimate:
        """Of one kernel.

        Args:
          products: numbers that meet for each pair: the sum of the dims of its matrix products.
          exponents: for each pair.
          blocks: numbers that stream by for each pair of blocks.
          writes: numbers read and written once.
        """
        met = self.pairs / (self.heads * self.q_block * self.k_block) * (self.heads / self.together)
        return pl.CostEstimate(
            flops=2 * products * self.pairs,
            bytes_accessed=int(self.itemsize * (met * blocks + writes)),
            transcendentals=exponents * self.pairs,
        )


def choose_step(kernel: str, q: jax.Array, k: jax.Array, v: jax.Array) -> Step:
    """By the tile table: as many query heads of a key/value head as it allows, or heads in pairs to fill the lanes."""
    sizes = tiles.lookup(kernel)
    batch, length, heads, head_dim = q.shape
    kv_length, kv_heads, value_dim = k.shape[1], k.shape[2], v.shape[3]
    q_block, k_block = (min(sizes[x], up_to(n, LANES)) for x, n in (("queries", length), ("keys", kv_length)))
    kv, group = (2 if head_dim % LANES or value_dim % LANES else 1), heads // kv_heads
    if group == 1:
        kv *= tiles.largest_divisor(kv_heads // kv, max(sizes["heads"] // kv, 1))
    elif kv == 1:
        group = tiles.largest_divisor(group, sizes["heads"])
    shape = batch, length, kv_length, heads, kv_heads, head_dim, value_dim
    return Step(*shape, q.dtype.itemsize, q_block, k_block, kv, group, sizes["bytes"])


def up_to(number: int, multiple: int) -> int:
    """The least multiple that is not below ``number``."""
    return -(-number // multiple) * multiple
