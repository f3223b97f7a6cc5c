"""Preference pairs: one prompt, the better answer and the worse one, from files or made out of the tasks.

A source is random access as in `data.sources`. A record is ``{"prompt": [...], "chosen": [...], "rejected": [...]}`` of
OpenAI-style messages, and ``tools`` where it has them. One prompt in eight is held out, whatever file it stands in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xxhash

from posttrain_jax.data import gym, tasks
from posttrain_jax.data.packing import Batch, Place, lay
from posttrain_jax.data.pipeline import Kind
from posttrain_jax.data.sources import TASK_RECORDS, FileSource, Record, Source, file_of
from posttrain_jax.errors import UserError

if TYPE_CHECKING:
    from posttrain_jax.chat.format import Chat

KINDS = "'tasks', a .jsonl or .json file, or 'jsonl:PATH'"
TOKENS_OF_A_PAIR = 16  # a row has room for one pair for each so many of its tokens
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names
TURN = re.compile(r"\n\n(Human|Assistant):")
SCORES = ("overall_score", "score", "rating")
TEXTS = ("response", "text", "content")


def open(
    spec: str, split: str, *, names: Sequence[str] = (), max_level: int = 0, system: str = "", seed: int = 0
) -> Source:
    """The pairs that ``spec`` names, 'tasks' or a file (.jsonl, .json, also .gz), of one split.

    Args:
      spec: which source.
      split: ``"train"`` or ``"heldout"``.
      names: task types ('tasks' only); empty means all.
      max_level: hardest level of a task ('tasks' only).
      system: system message of every prompt that brings none; empty adds none.
      seed: of the task generators ('tasks' only).

    Raises:
      UserError: an unknown kind, a missing file, a line that is no pair (by its number), or a split without any.
    """
    if spec == "tasks":
        return TaskPairs(names or tasks.TASKS, max_level, system, seed, split)
    if file := file_of(spec):
        return Split(FileSource(file, system, pair), split, file)
    raise UserError(f"preference pairs {spec!r} are unknown: expected {KINDS}")


def pair(record: Any, system: str) -> Record:
    """A record as a preference pair.

    Args:
      record: ``chosen`` and ``rejected``, each text, a message or messages, behind a ``prompt`` or ShareGPT's
        ``conversations``; or each a whole conversation, as messages or as HH-RLHF's ``Human:`` and ``Assistant:``
        turns; or ``prompt`` (``instruction``) and scored ``responses`` (``completions``) as UltraFeedback has them,
        of which the best stands against the worst.
      system: system message of a prompt that brings none.

    Raises:
      ValueError: says what the record lacks.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    opening = next((record[name] for name in ("prompt", "instruction", "conversations") if record.get(name)), None)
    prompt = _messages(opening, "user", "prompt") if opening is not None else []
    answers = next((record[name] for name in ("responses", "completions") if name in record), None)
    if "chosen" in record and "rejected" in record:
        chosen, rejected = (_messages(record[name], "assistant", name) for name in ("chosen", "rejected"))
    elif answers is not None:
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in _extremes(answers))
    else:
        fields = ", ".join(map(str, record)) or "none"
        raise ValueError(f"expected chosen and rejected, or scored responses; found fields: {fields}")
    if len(chosen) > 1 or len(rejected) > 1 or not prompt:  # whole conversations, which begin alike
        prompt, chosen, rejected = _parted(chosen, rejected)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[-1].get("role") != "assistant":
            raise ValueError(f"field {name!r} does not end with an answer of the assistant")
    if prompt[-1].get("role") not in ("user", "tool"):
        raise ValueError("the prompt does not end with a message to answer")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same")
    if system and prompt[0].get("role") != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    tools = {"tools": record["tools"]} if record.get("tools") else {}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **tools}


def _messages(value: Any, role: str, field: str) -> list[Record]:
    """Text, a transcript, one message or several, as messages; text alone is ``role``'s."""
    if isinstance(value, str):
        return _transcript(value, field) if TURN.match(value) else [{"role": role, "content": value}]
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list) or not value or not all(isinstance(message, Mapping) for message in value):
        raise ValueError(f"field {field!r} is neither text nor messages with role and content")
    return [_openai(message) for message in value]


def _openai(message: Mapping[str, Any]) -> Record:
    """A message by OpenAI's names, whether it has those or ShareGPT's."""
    if "from" not in message:
        return dict(message)
    return {"role": ROLES.get(message["from"], message["from"]), "content": message.get("value", "")}


def _transcript(text: str, field: str) -> list[Record]:
    turns = TURN.split(text)[1:]
    messages = [
        {"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
        for speaker, said in zip(turns[::2], turns[1::2], strict=True)
    ]
    if messages[0]["role"] != "user":
        raise ValueError(f"field {field!r} begins with the assistant's turn")
    return messages


def _parted(chosen: list[Record], rejected: list[Record]) -> tuple[list[Record], list[Record], list[Record]]:
    """What two conversations share, up to their last common message to answer, and how each goes on."""
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if shared is None:
        shared = min(len(chosen), len(rejected)) - 1
    while shared and chosen[shared - 1].get("role") not in ("user", "tool"):
        shared -= 1
    if not shared:
        raise ValueError("chosen and rejected answer different prompts")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _extremes(answers: Any) -> tuple[str, str]:
    """The texts with the highest and the lowest score; of equal ones the first."""
    if not isinstance(answers, list) or not all(isinstance(answer, Mapping) for answer in answers):
        raise ValueError("the responses are not a list of objects with a text and a score")
    scored = []
    for number, answer in enumerate(answers, 1):
        text = next((answer[name] for name in TEXTS if isinstance(answer.get(name), str)), None)
        score = next((answer[name] for name in SCORES if type(answer.get(name)) in (int, float)), None)
        if text is None or score is None:
            raise ValueError(f"response {number} lacks a text ({', '.join(TEXTS)}) or a score ({', '.join(SCORES)})")
        scored.append((score, text))
    if len({score for score, _ in scored}) < 2:
        raise ValueError("the responses do not differ in score, so none is preferred")
    return max(scored, key=lambda s: s[0])[1], min(scored, key=lambda s: s[0])[1]


class Split:
    """The records of a source whose prompt's hash puts them into ``split``, so that no prompt is in both."""

    def __init__(self, source: Source, split: str, name: str):
        self._source = source
        self._chosen = [i for i in range(len(source)) if _split_of(source[i]["prompt"]) == split]
        if not self._chosen:
            raise UserError(
                f"{name} has {len(source)} pairs, but none whose prompt falls into the {split} split (one in "
                f"{tasks.HELDOUT_SHARE} is held out): more pairs are needed"
            )

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Record:
        return self._source[self._chosen[index]]

    def where(self, index: int) -> str:
        return self._source.where(self._chosen[index])


def _split_of(prompt: list[Record]) -> str:
    asked = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return tasks.SPLITS[xxhash.xxh64_intdigest(asked.encode(errors="surrogatepass")) % tasks.HELDOUT_SHARE == 0]


class TaskPairs:
    """Generated problems, each with its worked solution and that of another problem, which the verifier refuses here.

    Every other pair has the right steps before the wrong answer, so that neither alone gives it away.
    """

    def __init__(self, names: Sequence[str], max_level: int, system: str, seed: int, split: str):
        self._cells = [(name, level) for level in range(max_level + 1) for name in names]
        self._system, self._seed, self._split = system, seed, split
        if found := next(filter(gym.is_gym, names), None):
            raise UserError(f"task {found!r} has no worked solutions to make pairs of: name the stage's data")

    def __len__(self) -> int:
        return TASK_RECORDS

    def __getitem__(self, index: int) -> Record:
        number, cell = divmod(index, len(self._cells))
        problem = self._problem(cell, number)
        others = (self._problem(cell, number + 1 + i) for i in range(64))
        other = next((p for p in others if tasks.score(problem, p.answer) < 1.0), None)
        if other is None:
            raise UserError(f"{self.where(index)}: the next 64 problems all have its answer, so none is wrong")
        reasoning = problem.reasoning if number % 2 else other.reasoning
        answers = ((problem.reasoning, problem.answer), (reasoning, other.answer))
        chosen, rejected = ([{"role": "assistant", "reasoning_content": r, "content": a}] for r, a in answers)
        return pair({"prompt": problem.question, "chosen": chosen, "rejected": rejected}, self._system)

    def _problem(self, cell: int, number: int) -> tasks.Problem:
        return tasks.problem(*self._cells[cell], index=number, split=self._split, seed=self._seed)

    def where(self, index: int) -> str:
        number, cell = divmod(index, len(self._cells))
        return "task {} level {} problem {}".format(*self._cells[cell], number)


class Tokens(NamedTuple):
    """A pair as two whole conversations, and 1 for each token that is part of an answer."""

    chosen: list[int]
    rejected: list[int]
    chosen_answer: list[int]
    rejected_answer: list[int]


def encode(chat: Chat, record: Mapping[str, Any]) -> Tokens:
    """Both conversations as `Chat.encode` writes them, up to the stop token that a response would end with.

    Of the trained tokens only those behind the prompt count.
    """
    tools = record.get("tools")
    start = len(chat.encode(record["prompt"], tools, add_generation_prompt=True)[0])

    def whole(name: str) -> tuple[list[int], list[int]]:
        tokens, trained = chat.encode([*record["prompt"], *record[name]], tools)
        end = max(i for i, counts in enumerate(trained, 1) if counts)
        return tokens[:end], [0] * start + trained[start:end]

    (chosen, chosen_answer), (rejected, rejected_answer) = whole("chosen"), whole("rejected")
    return Tokens(chosen, rejected, chosen_answer, rejected_answer)


def lay_pairs(placed: Sequence[tuple[Place, Tokens]], *, rows: int, length: int) -> Batch:
    """Pairs in their places, the chosen answer before the rejected one.

    Returns:
      ``[rows, length]`` arrays as of `packing.lay`, but ``segment_ids`` are 2k - 1 for the chosen and 2k for the
      rejected conversation of a row's k-th pair; ``answer`` is 1 where the target is part of an answer; ``mask`` is ½
      at each conversation's last token, so that it adds up to the number of pairs.
    """
    sequences = []
    for place, tokens in placed:
        middle = place.columns.start + len(tokens.chosen)
        first = Place(place.row, slice(place.columns.start, middle), 2 * place.segment - 1)
        second = Place(place.row, slice(middle, place.columns.stop), 2 * place.segment)
        sequences += [(first, tokens.chosen, tokens.chosen_answer), (second, tokens.rejected, tokens.rejected_answer)]
    batch = lay(sequences, rows=rows, length=length)
    ends = np.zeros((rows, length), np.float32)
    for place, _, _ in sequences:
        ends[place.row, place.columns.stop - 1] = 0.5
    return {**batch, "answer": batch["mask"], "mask": ends}


def most_pairs(length: int) -> int:
    """Pairs that a row of ``length`` tokens has room for."""
    return max(1, length // TOKENS_OF_A_PAIR)


PAIRS = Kind(encode, lambda tokens: len(tokens.chosen) + len(tokens.rejected), lay_pairs, most_pairs)
