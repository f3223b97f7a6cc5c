"""Near-duplicates by MinHash over word n-grams (Broder 1997), and overlap with evaluation texts by n-gram."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xxhash
from jaxtyping import UInt64


def words_of(text: str) -> list[str]:
    """Words in lower case; of Chinese, each character is one."""
    return re.findall(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+", text.lower())


def grams(text: str, n: int) -> set[str]:
    """Runs of ``n`` words; of a shorter text, the whole."""
    words = words_of(text)
    return {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def signature(text: str, *, n: int = 5, hashes: int = 64) -> UInt64[np.ndarray, " hashes"]:
    """The least hash of a text's n-grams under each of ``hashes`` functions; the share of equal entries of two
    signatures estimates the Jaccard similarity of their n-gram sets."""
    raw = np.array([xxhash.xxh64_intdigest(gram.encode()) for gram in grams(text, n)], np.uint64)
    return _mixed(raw[:, None] ^ _salts(hashes)).min(axis=0, initial=np.iinfo(np.uint64).max)


@functools.cache
def _salts(count: int) -> UInt64[np.ndarray, " count"]:
    return np.random.Generator(np.random.PCG64(0)).integers(0, np.iinfo(np.uint64).max, count, np.uint64)


def _mixed(values: UInt64[np.ndarray, "grams hashes"]) -> UInt64[np.ndarray, "grams hashes"]:
    """splitmix64's finaliser: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Seen:
    """Texts, one after another, and of which one before it each is a near-duplicate.

    Candidates share one of ``bands`` parts of their signatures; those whose signatures agree in at least ``threshold``
    are duplicates. With 16 bands of 4, a pair of similarity 0.8 is looked at with probability 0.9998.

    Raises:
      ValueError: ``hashes`` is not a multiple of ``bands``.
    """

    def __init__(self, threshold: float = 0.8, *, n: int = 5, hashes: int = 64, bands: int = 16):
        if hashes % bands:
            raise ValueError(f"{hashes} hashes in {bands} bands; expected a multiple")
        self._threshold, self._n, self._hashes, self._bands = threshold, n, hashes, bands
        self._buckets: dict[tuple[int, bytes], list[int]] = {}
        self._signatures: dict[int, np.ndarray] = {}

    def near(self, text: str, number: int) -> int | None:
        """Number of the first text that this one is a near-duplicate of; None keeps it, under a number of its own."""
        own = signature(text, n=self._n, hashes=self._hashes)
        keys = [(band, part.tobytes()) for band, part in enumerate(own.reshape(self._bands, -1))]
        for other in sorted({other for key in keys for other in self._buckets.get(key, ())}):
            if np.mean(self._signatures[other] == own) >= self._threshold:
                return other
        self._signatures[number] = own
        for key in keys:
            self._buckets.setdefault(key, []).append(number)
        return None


def unique(texts: Sequence[str], *, threshold: float = 0.8, n: int = 5, hashes: int = 64, bands: int = 16) -> list[int]:
    """Indices of the texts that are no near-duplicate of one before them; see `Seen`."""
    seen = Seen(threshold, n=n, hashes=hashes, bands=bands)
    return [index for index, text in enumerate(texts) if seen.near(text, index) is None]


def held_out(evaluation: Iterable[str], *, n: int = 13) -> dict[int, set[str]]:
    """The runs of ``n`` words of evaluation texts, by their length; a shorter text counts whole."""
    held: dict[int, set[str]] = {}
    for text in evaluation:
        if words := words_of(text):
            held.setdefault(min(n, len(words)), set()).update(grams(text, n))
    return held


def overlaps(text: str, held: Mapping[int, set[str]]) -> bool:
    """Whether a text shares a run of words with evaluation texts, as `held_out` gave them."""
    return any(not shared.isdisjoint(grams(text, size)) for size, shared in held.items())


def clean(texts: Iterable[str], evaluation: Iterable[str], *, n: int = 13) -> list[int]:
    """Indices of the texts that share no run of ``n`` words with an evaluation text."""
    held = held_out(evaluation, n=n)
    return [index for index, text in enumerate(texts) if not overlaps(text, held)]
