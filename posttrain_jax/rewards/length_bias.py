"""Whether a reward model pays for length, and its scores without what it pays.

MiniMax-M1 (arXiv 2506.13585, section 4.2) watches for rewards that grow with length alone and recalibrates the model
when they do. Between two trainings of the model, the part of its scores that is linear in length is taken out.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def correlation(scores: Float[np.ndarray, " responses"], lengths: Float[np.ndarray, " responses"]) -> float:
    """Pearson's correlation; 0 where either does not vary."""
    x, y = np.asarray(scores, np.float64), np.asarray(lengths, np.float64)
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread > 0 else 0.0


def without_slope(
    scores: Float[np.ndarray, " responses"], lengths: Float[np.ndarray, " responses"], *, bound: float
) -> Float[np.ndarray, " responses"]:
    """Scores whose least-squares slope on length is taken out, if their correlation is above ``bound``.

    Their mean stays; their correlation with length is then 0. Scores that fall with length stay as they are.
    """
    scores = np.asarray(scores, np.float64)
    if correlation(scores, lengths) <= bound:
        return scores
    centred = np.asarray(lengths, np.float64) - np.mean(lengths)
    return scores - centred * (centred @ scores) / (centred @ centred)
