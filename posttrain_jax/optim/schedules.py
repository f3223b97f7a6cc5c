"""Paths of the learning rate, each with a linear warm-up from zero."""

from __future__ import annotations

import optax


def schedule(
    kind: str, peak: float, steps: int, *, warmup_steps: int = 0, final_ratio: float = 0.1, decay_share: float = 0.2
) -> optax.Schedule:
    """The learning rate at each update, over ``steps`` of them.

    * ``constant``: stays at ``peak``.
    * ``cosine``: half a cosine from ``peak`` to ``peak * final_ratio`` at ``steps`` (GLM-4.5, arXiv 2508.06471, 3.1).
    * ``wsd``: warm-up, stable, decay: stays at ``peak`` and falls by half a cosine over the last ``decay_share`` of the
      steps (as Kimi K2 was pretrained, arXiv 2507.20534, section 2.5).

    Raises:
      ValueError: an unknown kind.
    """
    if kind not in ("constant", "cosine", "wsd"):
        raise ValueError(f"no schedule {kind!r}; known: constant, cosine, wsd")
    rest = max(steps - warmup_steps, 1)
    falling = {"constant": 0, "cosine": rest, "wsd": min(max(round(decay_share * steps), 1), rest)}[kind]
    parts, ends = [], []
    if warmup_steps:
        parts.append(optax.linear_schedule(0.0, peak, warmup_steps))
        ends.append(warmup_steps)
    if rest > falling or not falling:
        parts.append(optax.constant_schedule(peak))
        ends.append(warmup_steps + rest - falling)
    if falling:
        parts.append(optax.cosine_decay_schedule(peak, falling, alpha=final_ratio))
        ends.append(steps)
    return optax.join_schedules(parts, ends[:-1])
