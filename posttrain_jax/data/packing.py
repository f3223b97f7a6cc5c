"""First-fit packing: sequences of different lengths laid into rows of one length, none cut, none mixed.

First-fit puts each sequence into the first row that still has room for it; it never needs more than 1.7 times the
fewest rows possible (Garey, Graham & Johnson 1972).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

Batch = dict[str, Int32[np.ndarray, "rows length"] | Float32[np.ndarray, "rows length"]]


class Place(NamedTuple):
    """Where a sequence lies: its row, its columns there, and its number among the row's sequences (from 1)."""

    row: int
    columns: slice
    segment: int


class FirstFit:
    """Rows of ``length`` positions, filled one sequence at a time; ``rows`` of them, or as many as it takes.

    A row takes no more than ``most`` sequences, if that is given.
    """

    def __init__(self, length: int, rows: int | None = None, most: int | None = None):
        self._length, self._rows, self._most = length, rows, most
        self._used: list[int] = []
        self._segments: list[int] = []

    def __len__(self) -> int:
        """Rows that hold something."""
        return len(self._used)

    def place(self, size: int) -> Place | None:
        """Takes ``size`` positions in the first row with room for them; None when no row has.

        Raises:
          ValueError: ``size`` is larger than a row.
        """
        if size > self._length:
            raise ValueError(f"a sequence of {size} tokens does not fit a row of {self._length}")
        open_rows = (row for row in range(len(self._used)) if self._segments[row] != self._most)
        row = next((row for row in open_rows if self._used[row] + size <= self._length), len(self._used))
        if row == self._rows:
            return None
        if row == len(self._used):
            self._used.append(0)
            self._segments.append(0)
        start = self._used[row]
        self._used[row] += size
        self._segments[row] += 1
        return Place(row, slice(start, start + size), self._segments[row])


def lay(samples: Sequence[tuple[Place, Sequence[int], Sequence[int]]], *, rows: int, length: int) -> Batch:
    """Samples in their places, as the arrays that a training step reads.

    Args:
      samples: for each its place, its tokens, and 1 for each of those tokens that is trained on, else 0.

    Returns:
      ``[rows, length]`` arrays: ``tokens``; ``targets``, the next token of the same sample (0 at its last);
      ``mask``, 1 where the target is trained on; ``segment_ids``, 0 where padding; and ``positions``, counted from
      the sample's first token.
    """
    integers = {name: np.zeros((rows, length), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    mask = np.zeros((rows, length), np.float32)
    for (row, columns, segment), tokens, trained in samples:
        predicting = slice(columns.start, columns.stop - 1)
        integers["tokens"][row, columns] = tokens
        integers["targets"][row, predicting] = tokens[1:]
        integers["segment_ids"][row, columns] = segment
        integers["positions"][row, columns] = np.arange(len(tokens))
        mask[row, predicting] = trained[1:]
    return {**integers, "mask": mask}
