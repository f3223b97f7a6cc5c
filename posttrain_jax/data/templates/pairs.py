"""Pairs of preference in the formats that others write: HH-RLHF's transcripts, UltraFeedback's messages and texts."""

from __future__ import annotations

import re
from typing import Any

from posttrain_jax.data.records import Message, Record, checked, type_name
from posttrain_jax.data.templates.template import ANNOTATIONS, Fields, Template
from posttrain_jax.data.templates.translation import answer, text

SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
SCORES: tuple[str, ...] = ("score_chosen", "score_rejected", "chosen_score", "rejected_score", "margin", "prompt_id")


def transcript(said: str, field: str) -> list[Message]:
    """Turns that begin with ``Human:`` and ``Assistant:`` (Bai et al. 2022).

    Raises:
      ValueError: text before the first turn, or none.
    """
    before, *turns = SPEAKER.split(said)
    if before.strip() or not turns:
        raise ValueError(f"field {field!r} does not begin with 'Human:', and there is no prompt beside it")
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [
        answer(words.strip(), None) if who == "Assistant" else {"role": "user", "content": words.strip()}
        for who, words in pairs
    ]


def hh_rlhf(fields: Fields, notes: list[str]) -> Record:
    """``chosen`` and ``rejected``: transcripts, or messages, that begin alike."""
    sides = [side(fields[name], name) for name in ("chosen", "rejected")]
    return pair("hh_rlhf", [], sides[0], sides[1], fields)


def ultrafeedback(fields: Fields, notes: list[str]) -> Record:
    """``prompt``, text or messages, with ``chosen`` and ``rejected``: texts, or messages that may repeat the prompt."""
    prompt = fields["prompt"]
    before = prompt if isinstance(prompt, list) else [{"role": "user", "content": text("prompt", prompt)}]
    sides = []
    for name in ("chosen", "rejected"):
        given = fields[name]
        given = [answer(given, None)] if isinstance(given, str) else side(given, name)
        sides.append(given[len(before) :] if given[: len(before)] == before else given)
    return pair("ultrafeedback", before, sides[0], sides[1], fields)


def side(given: Any, name: str) -> list[Message]:
    """One side of a pair as messages."""
    if isinstance(given, str):
        return transcript(given, name)
    if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
        raise ValueError(f"field {name!r} is {type_name(given)}; expected text or a list of messages")
    return given


def pair(name: str, before: list[Message], chosen: list[Message], rejected: list[Message], fields: Fields) -> Record:
    """The pair, with what both sides begin with, up to the last answer, as its prompt."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    kept = {key: fields[key] for key in (*ANNOTATIONS, *SCORES) if key in fields}
    return checked(
        Record(
            [*before, *chosen[:shared]],
            stage="pref",
            chosen=chosen[shared:],
            rejected=rejected[shared:],
            annotations=kept,
            template=name,
        )
    )


PAIR = {"chosen": "chosen", "rejected": "rejected"}
KEPT: dict[str, str] = dict.fromkeys(SCORES, "annotation")

TEMPLATES = (
    Template("hh_rlhf", "preference: two transcripts", PAIR, KEPT, stage="pref", translate=hh_rlhf),
    Template(
        "ultrafeedback",
        "preference: a prompt and two answers",
        {"prompt": "prompt", **PAIR},
        {**KEPT, "messages": "annotation"},
        stage="pref",
        translate=ultrafeedback,
    ),
)
