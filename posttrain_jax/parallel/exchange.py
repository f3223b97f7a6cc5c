"""What several processes of one run tell each other: shares of host work, and arrays that lie on all their devices.

Everything here is collective: every process calls it at the same place. With one process it costs nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
    """``work(items)``, of which process p of n does items p, p + n, p + 2n, …, and every process has all results.

    What ``work`` makes of an item must not depend on the items beside it. Results are pickled.
    """
    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        return list(work(items))
    whole: list[Any] = [None] * len(items)
    for process, part in enumerate(gather(list(work(items[index::count])))):
        whole[process::count] = part
    return whole


def gather(thing: Any) -> list[Any]:
    """What each process brings, in their order; things that can be pickled."""
    if jax.process_count() == 1:
        return [thing]
    content = np.frombuffer(pickle.dumps(thing), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(content)))).tolist()
    room = 1 << (max(sizes) - 1).bit_length()  # few different sizes, for each is a program of its own
    rows = np.asarray(multihost_utils.process_allgather(np.pad(content, (0, room - len(content)))))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def fetch(tree: Any) -> Any:
    """A tree of arrays as numpy on every process, wherever their parts lie."""
    return jax.tree.map(
        lambda x: np.asarray(x) if _readable(x) else np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree
    )


def own_copy(tree: Any, device: Any = None) -> Any:
    """A tree of arrays, whole, on the first device of each process, or on ``device``, which is the process's own."""

    def copy(array: jax.Array) -> jax.Array:
        first = on_first(array)
        return first if device is None else jax.device_put(first, device)

    def on_first(array: jax.Array) -> jax.Array:
        where = array.sharding
        if isinstance(where, jax.sharding.NamedSharding) and not where.is_fully_replicated:
            array = jax.device_put(array, jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec()))
        elif not array.is_fully_replicated:
            return jax.device_put(array, jax.local_devices()[0])
        return array.addressable_data(0)

    return jax.tree.map(copy, tree)


def _readable(array: Any) -> bool:
    return not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated
