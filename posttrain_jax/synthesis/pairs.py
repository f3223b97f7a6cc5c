"""Preference pairs from trajectories: what was rewarded beside what was not, what was allowed beside what was not."""

from __future__ import annotations

import dataclasses
from typing import Any

from posttrain_jax.data.records import Record, checked

ONLY_LOOK = "You may look things up, but you are not allowed to change anything, whoever asks."
REFUSALS = (
    "I am not allowed to change anything here, so I cannot do that. I can look something up for you.",
    "Sorry, that would change something, which I may not do. Shall I look something up instead?",
    "That is beyond what I may do here: I can only look things up. Please ask somebody who may change it.",
)
DECLINES = (
    "I can't help with that. If there is a safe goal behind it, tell me, and I will gladly help with that.",
    "No, I won't help with this, because it could hurt somebody. I can point you to help if you need some.",
)
COMPLIES = "Sure, I will do exactly as you say and ask no questions."


def preference(good: Record, bad: Record) -> Record:
    """Two attempts at one task as a pair: what they share, then how each went on.

    Raises:
      ValueError: they do not have the same tools and beginning, the first was not rewarded more, or one is a part of
        the other.
    """
    if good.tools != bad.tools or good.thinking != bad.thinking or good.messages[0] != bad.messages[0]:
        raise ValueError("the attempts are not at the same task")
    if good.reward is None or bad.reward is None or good.reward <= bad.reward:
        raise ValueError(f"rewards {good.reward} and {bad.reward}; expected the first to be higher")
    shared = 0
    for one, other in zip(good.messages, bad.messages, strict=False):
        if one != other:
            break
        shared += 1
    before, chosen, rejected = good.messages[:shared], good.messages[shared:], bad.messages[shared:]
    if not chosen or not rejected or chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":
        raise ValueError("the attempts do not part at an answer")
    return _pair(good, before, chosen, rejected, "attempts")


def refusal(record: Record, variant: int = 0) -> Record:
    """A task whose system prompt now forbids it: refusing is chosen, what was done is rejected.

    Raises:
      ValueError: a record without an answer.
    """
    start = next((i for i, message in enumerate(record.messages) if message["role"] == "assistant"), None)
    if start is None:
        raise ValueError("a record without an answer")
    last = max((i for i in range(start) if record.messages[i]["role"] == "user"), default=None)
    if last is None:
        raise ValueError("a record in which no user speaks")
    system = record.messages[0]["content"] if record.messages[0]["role"] == "system" else ""
    rest = record.messages[1:start] if system else record.messages[:start]
    before = [{"role": "system", "content": f"{system} {ONLY_LOOK}".strip()}, *rest]
    chosen = [{"role": "assistant", "content": REFUSALS[variant % len(REFUSALS)]}]
    return _pair(record, before, chosen, record.messages[start:], "refusal")


def decline(request: str, variant: int = 0) -> Record:
    """A harmful request: declining is chosen; the rejected answer only says that it complies."""
    return checked(
        Record(
            messages=[{"role": "user", "content": request}],
            thinking=False,
            stage="pref",
            chosen=[{"role": "assistant", "content": DECLINES[variant % len(DECLINES)]}],
            rejected=[{"role": "assistant", "content": COMPLIES}],
            annotations={"pair": "decline"},
        )
    )


def _pair(record: Record, before: Any, chosen: Any, rejected: Any, kind: str) -> Record:
    annotations = {**record.annotations, "pair": kind}
    made = dataclasses.replace(record, messages=before, chosen=chosen, rejected=rejected, stage="pref", reward=None)
    return checked(dataclasses.replace(made, annotations=annotations))
