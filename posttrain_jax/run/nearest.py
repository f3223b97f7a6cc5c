"""The nearest good value, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, options: Iterable[str]) -> str:
    """The option most like ``name``; a dotted path is judged as a whole and by its last part."""

    def likeness(option: str) -> float:
        whole = difflib.SequenceMatcher(None, name, option).ratio()
        return whole + difflib.SequenceMatcher(None, name.split(".")[-1], option.split(".")[-1]).ratio()

    return max(options, key=likeness)
