"""Judged responses into fixed-size training rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrain_jax.data.packing import FirstFit
from posttrain_jax.run.recipe import RL
from posttrain_jax.stages.experience import Judged

FLOATS = ("mask", "weights", "old_logprobs", "advantages", "rewards")


def capacity(settings: RL, longest: int, segments: int = 1) -> int:
    """Microbatches that hold a minibatch however long its responses are.

    ``longest`` tokens is the limit of a segment, and a response has at most ``segments`` of them.
    """
    groups = -(-settings.groups // settings.minibatches)
    rows = -(-groups * settings.group_size * segments // (settings.length // longest))
    return -(-rows // settings.microbatch_rows)


def pack(
    responses: Sequence[tuple[Judged, float]],
    weights: Sequence[float] | None = None,
    *,
    rows: int,
    length: int,
    capacity: int,
    version: int | None = None,
) -> tuple[int, dict[str, np.ndarray]]:
    """Lays responses with their advantages first-fit into rows; ``weights`` say what a token of each counts, or 1.

    Returns:
      How many microbatches are filled, and ``[capacity, rows, length]`` arrays: ``tokens``, ``targets`` (the next
      token), ``positions`` and ``segment_ids`` (0 is padding), ``mask`` (1 where the target was sampled), and there
      ``old_logprobs``, ``advantages`` and ``weights``, and the reward where a response ends (``rewards``). Where the
      responses tell their experts, these as ``routing`` too, ``[capacity, rows, length, layers, experts_per_token]``;
      with a ``version``, 1 on what that policy drew as ``fresh``.
    """
    shape = (capacity * rows, length)
    integers = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "positions", "segment_ids")}
    floats = {name: np.zeros(shape, np.float32) for name in (*FLOATS, *(() if version is None else ("fresh",)))}
    pieces = [[*response.segments] for response, _ in responses]
    told = [piece.routing for segments in pieces for piece in segments if piece.routing is not None]
    routing = {"routing": np.full((*shape, *told[0].shape[1:]), -1, np.int16)} if told else {}
    fit = FirstFit(length)
    for (response, advantage), segments, weight in zip(
        responses, pieces, weights or [1.0] * len(responses), strict=True
    ):
        for piece in segments:
            place = fit.place(len(piece.tokens) - 1)
            assert place is not None  # rows without end
            row, here, segment = place
            sampled = piece.sampled[1:]
            integers["tokens"][row, here] = piece.tokens[:-1]
            integers["targets"][row, here] = piece.tokens[1:]
            integers["positions"][row, here] = np.arange(len(sampled))
            integers["segment_ids"][row, here] = segment
            floats["mask"][row, here] = sampled
            floats["weights"][row, here] = weight * sampled
            floats["old_logprobs"][row, here] = piece.logprobs[1:]
            floats["advantages"][row, here] = advantage * sampled
            if piece is segments[-1]:
                floats["rewards"][row, here.stop - 1] = response.reward
            if version is not None:
                floats["fresh"][row, here] = piece.versions[1:] == version
            if piece.routing is not None:
                routing["routing"][row, here] = piece.routing[: len(sampled)]
    arrays = {**integers, **floats, **routing}
    cut = {name: array.reshape(capacity, rows, length, *array.shape[2:]) for name, array in arrays.items()}
    return -(-len(fit) // rows), cut


def add_ptx(filled: int, batch: dict[str, np.ndarray], sft: dict[str, np.ndarray]) -> tuple[int, dict[str, np.ndarray]]:
    """Puts rows of SFT data behind the filled microbatches of `pack`, which must have room for them.

    They are no part of the objective (their mask is 0). ``ptx`` weighs their trained tokens, 1 in all.

    Args:
      filled: microbatches that hold responses.
      batch: from `pack`.
      sft: ``[rows, length]`` arrays as `data.pipeline` yields them.
    """
    capacity, rows, length = batch["mask"].shape
    count = -(-len(sft["mask"]) // rows)
    spare = count * rows - len(sft["mask"])
    batch = {**batch, "ptx": np.zeros((capacity, rows, length), np.float32)}
    moved = {name: sft[name] for name in ("tokens", "targets", "positions", "segment_ids")}
    moved["ptx"] = sft["mask"].astype(np.float32) / max(float(sft["mask"].sum()), 1.0)
    for name, array in moved.items():
        batch[name][filled : filled + count] = np.pad(array, ((0, spare), (0, 0))).reshape(count, rows, length)
    return filled + count, batch
