"""Rewards that depend on length alone."""

from __future__ import annotations

from collections.abc import Sequence


def overlong_penalty(length: int, *, limit: int, buffer: int, penalty: float) -> float:
    """A soft penalty near the length limit: 0 up to ``limit - buffer`` tokens, then falling linearly to ``-penalty``.

    Source: DAPO (arXiv 2503.14476), equation 13, scaled by ``penalty``.
    """
    if buffer <= 0:
        return -penalty if length >= limit else 0.0
    return -penalty * min(max((length - (limit - buffer)) / buffer, 0.0), 1.0)


def length_rewards(lengths: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """λ_i = ½ - (len_i - min) / (max - min) over the answers to one prompt, for a wrong one no more than 0.

    Answers of one length all get 0. Source: Kimi K1.5 (arXiv 2501.12599), section 2.3.3.
    """
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    rewards = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [reward if right else min(0.0, reward) for reward, right in zip(rewards, correct, strict=True)]
