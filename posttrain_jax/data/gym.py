"""All generators of reasoning-gym as tasks, by the names ``gym/…``, with the difficulty levels of its curricula.

They have no worked solutions, so nothing can be imitated. Their scorers judge; four of those evaluate an answer as
Python and five hand it to sympy, which does the same: such an answer has to be made of what its task needs and nothing
that could call, import or run for long. A scorer that takes too long is interrupted.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import xxhash

from posttrain_jax.errors import UserError

PREFIX = "gym/"
COMBINED = "composite"  # a mixture of others, which a recipe mixes itself
EAGER = ("acre", "gsm_symbolic", "list_functions", "pool_matrix", "word_ladder")  # need a size or a seed of their own
BOUNDS = {"jugs": (0, 1), "sokoban": (1, 99), "zebra_puzzles": (0, 2)}  # levels whose entries are made in a second
SECONDS = 5.0  # for a scorer
LONGEST = 4000  # characters of an answer, which may have several lines

_LISTS = re.compile(r"""[\w\s,'"\[\].\-]*""")
_TOKENS = re.compile(r"\*\*|[a-zA-Z]+|\d+(?:\.\d+)?|[-+*/()]|\s+|.", re.S)
_WORDS = set("sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt pi Abs".split())
_POWER = re.compile(r"\*\*\s*(?:[12]?\d|\(-?[12]?\d(?:/\d)?\))(?!\d|\s*\*\*)")  # of small numbers, not of powers


def _is_list(answer: str) -> bool:
    """Nothing but text, numbers and lists of them."""
    return _LISTS.fullmatch(answer) is not None


def _is_formula(answer: str) -> bool:
    """Nothing but arithmetic with variables of one letter, common functions and small powers."""
    powers = len(_POWER.findall(answer))
    return (
        len(answer) <= 300
        and answer.count("**") == powers <= 12
        and len(re.findall(r"\)\s*\*\*", answer)) <= 2
        and all(map(_is_known, _TOKENS.findall(answer)))
    )


def _is_known(token: str) -> bool:
    if token[0].isascii() and token[0].isalpha():
        return len(token) == 1 or token in _WORDS
    return token in ("**", *"-+*/()") or token.isspace() or re.fullmatch(r"[0-9.]{1,12}", token) is not None


EVALUATED = {
    **dict.fromkeys(("string_insertion", "spiral_matrix", "binary_matrix", "n_queens"), _is_list),
    **dict.fromkeys(
        ("simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown"),
        _is_formula,
    ),
}


@functools.cache
def names() -> tuple[str, ...]:
    """Every task, ``gym/`` before it."""
    from reasoning_gym.factory import DATASETS

    return tuple(PREFIX + name for name in sorted(DATASETS) if name != COMBINED)


def is_gym(name: str) -> bool:
    """Whether a task is called like one of these."""
    return name.startswith(PREFIX)


def check(name: str) -> None:
    """Nothing, for a name that is there.

    Raises:
      UserError: it is not.
    """
    if name not in names():
        [near] = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)
        raise UserError(f"task {name!r} is unknown; the nearest is {near!r}")


def area(name: str) -> str:
    """The kind of a task, by reasoning-gym's own folders, such as ``geometry``."""
    from reasoning_gym.factory import DATASETS

    return DATASETS[name.removeprefix(PREFIX)][0].__module__.split(".")[1]


def generator(name: str, level: int, seed: int, size: int) -> Any:
    """Entries by number, and their scorer, at a level of the task's curriculum, or the highest below that works."""
    own = name.removeprefix(PREFIX)
    return _OneByOne(own, level, seed) if own in EAGER else _made(own, level, seed, size)


def may_be_scored(name: str, answer: str) -> bool:
    """Whether an answer can be given to the task's scorer."""
    sound = EVALUATED.get(name.removeprefix(PREFIX), lambda answer: True)
    return len(answer) <= LONGEST and sound(answer)


def score(made: Any, name: str, answer: str, entry: Mapping[str, Any]) -> float:
    """The scorer's verdict, from 0 to 1; 0 for what may not be scored, breaks the scorer, or takes too long."""
    if not may_be_scored(name, answer):
        return 0.0
    try:
        with _within(SECONDS):
            return float(made.score_answer(answer, dict(entry)))
    except Exception:  # scorers index, unpack and parse what they are given
        return 0.0


def _made(own: str, level: int, seed: int, size: int) -> Any:
    from reasoning_gym.factory import CURRICULA, DATASETS

    kind, settings = DATASETS[own]
    low, high = BOUNDS.get(own, (0, level))
    level = max(low, min(level, high))
    if own not in CURRICULA:
        return kind(config=settings(seed=seed, size=size))
    while True:
        curriculum = CURRICULA[own]()  # type: ignore[operator]
        curriculum.set_global_level(level)
        try:
            return kind(config=curriculum.generate_configuration({"seed": seed, "size": size}))
        except (AssertionError, ValueError):  # a level that the generator itself refuses
            if level == low:
                return kind(config=settings(seed=seed, size=size))
            level -= 1


class _OneByOne:
    """A generator that is made anew for each entry."""

    def __init__(self, own: str, level: int, seed: int):
        self._make = lambda index: _made(own, level, xxhash.xxh32_intdigest(f"{seed}/{index}".encode()) >> 1, 1)
        self._scorer = self._make(0)

    def __getitem__(self, index: int) -> Any:
        return self._make(index)[0]

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return self._scorer.score_answer(answer, entry)


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what takes longer; only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
