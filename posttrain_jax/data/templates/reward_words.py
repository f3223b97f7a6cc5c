"""Rewards in words: "High for stable gradients", "Success (rubric: complete)", "1 if correct"."""

from __future__ import annotations

import math
import re
from typing import Any

from posttrain_jax.data.records import nearest, type_name

WORDS = {
    **dict.fromkeys(
        "high success successful succeeded pass passed correct good excellent accurate yes true".split(), 1.0
    ),
    **dict.fromkeys("medium moderate partial partially mixed fair average".split(), 0.5),
    **dict.fromkeys("low fail failed failure incorrect wrong poor bad unsafe no false none".split(), 0.0),
}
NUMBER = re.compile(r"\s*(?:score|reward)?\s*:?\s*([-+]?\d+(?:\.\d+)?)\s*(%|/\s*(\d+(?:\.\d+)?))?(?!\w|\.\d)", re.I)
FIRST_WORD = re.compile(r"\W*(?:very\s+|fully\s+|score\s*:\s*|reward\s*:\s*)*([^\W\d_]+)", re.I)


def reward(given: Any) -> float:
    """A number as it is; text by the number (``8/10`` and ``80%`` are 0.8) or else the word that it begins with.

    Raises:
      ValueError: neither a finite number nor a word of ``WORDS``; names the nearest.
    """
    if isinstance(given, int | float):
        value = float(given) if abs(given) < 1e308 else math.inf
        if not math.isfinite(value):
            raise ValueError(f"reward {given!r:.20} is not finite")
        return value
    if not isinstance(given, str):
        raise ValueError(f"reward is {type_name(given)}; expected a number or text that begins with a verdict")
    if number := NUMBER.match(given):
        scale = 100.0 if number[2] == "%" else float(number[3] or 1)
        if not scale:
            raise ValueError(f"reward {given!r:.80} is out of 0")
        return reward(float(number[1]) / scale)
    word = found[1].lower() if (found := FIRST_WORD.match(given)) else ""
    if word not in WORDS:
        raise ValueError(
            f"reward {given!r:.80} begins with neither a number nor a verdict such as high, medium, low"
            f"{nearest(word, WORDS)}"
        )
    return WORDS[word]
