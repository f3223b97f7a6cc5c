"""Trajectories of samples.jsonl, chosen and drawn for a terminal. Imports no JAX."""

from __future__ import annotations

import dataclasses
import heapq
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from posttrain_jax.errors import UserError
from posttrain_jax.run.metrics import SAMPLES
from posttrain_jax.run.nearest import nearest

Sample = dict[str, Any]

SORTS: dict[str, Callable[[Sample], float]] = {
    "step": lambda sample: sample["step"],
    "reward": lambda sample: sample["reward"],
    "length": lambda sample: sample["tokens"],
}
BOUNDS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq, "": operator.eq}
BOUND = re.compile(r"(?P<sign>>=|<=|>|<|=|)\s*(?P<number>[-+]?(\d+\.?\d*|\.\d+))")
NEEDED = {"stage": str, "step": int, "task": str, "reward": (int, float), "tokens": int}
FOLDED = 160  # characters of thinking, or of a tool's result, that are shown of a longer one
STYLES = {"system": "magenta", "user": "blue", "assistant": "green", "tool": "yellow"}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which trajectories; None is any.

    Attributes:
      reward: a bound such as ``>0.5``, ``<=0`` or ``1``.
    """

    stage: str | None = None
    step: int | None = None
    task: str | None = None
    reward: str | None = None

    def bound(self) -> Callable[[float], bool]:
        """Whether a reward is wanted.

        Raises:
          UserError: ``reward`` is no bound.
        """
        if self.reward is None:
            return lambda reward: True
        match = BOUND.fullmatch(self.reward.strip())
        if match is None:
            raise UserError(f"--reward={self.reward!r}: expected a bound such as '>0.5', '<=0' or '1'")
        compare, number = BOUNDS[match["sign"]], float(match["number"])
        return lambda reward: compare(reward, number)


def choose(workdir: Path, wanted: Wanted, sort: str, count: int) -> tuple[list[Sample], int]:
    """The ``count`` first of the wanted trajectories, highest ``sort`` first and later ones before earlier, and how
    many are wanted in all. A line that a run under way has not finished is left alone.

    Raises:
      UserError: there are none; the message names the nearest stage, task or step that there is, or the rewards' range.
    """
    path, bound = workdir / SAMPLES, wanted.bound()
    if sort not in SORTS:
        raise UserError(f"--sort={sort}: must be one of {', '.join(SORTS)}; the nearest is {nearest(sort, SORTS)}")
    seen: dict[str, dict[Any, None]] = {"stage": {}, "task": {}, "step": {}}
    rewards: list[float] = []

    def right() -> Iterator[Sample]:
        for sample in _read(path):
            for name, values in seen.items():  # each among those that the earlier ones leave
                values[sample[name]] = None
                if getattr(wanted, name) not in (None, sample[name]):
                    break
            else:
                rewards.append(sample["reward"])
                if bound(sample["reward"]):
                    yield sample

    total, best = 0, []
    for total, sample in enumerate(right(), 1):  # noqa: B007 - the last number counts them
        entry = (SORTS[sort](sample), total, sample)
        (heapq.heappush if len(best) < count else heapq.heappushpop)(best, entry)
    if not total:
        raise UserError(f"{path}: {_nothing(wanted, seen, rewards)}")
    return [sample for *_, sample in sorted(best, key=lambda entry: entry[:2], reverse=True)], total


def shown(sample: Sample, full: bool = False) -> RenderableType:
    """A trajectory: a line of facts, then what was said; thinking and tools' results folded unless ``full``.

    Whatever a model wrote is text to the terminal: no markup, and no control codes.
    """
    finish = sample.get("finish", "")
    where = f"{sample['stage']} step {sample['step']} · {sample['task']}"
    if "level" in sample:
        where += f" · level {sample['level']}"
    facts = Text(f"reward {sample['reward']:.3f}", "bold").append(_parts(sample), "not bold dim")
    right = ("", "")
    if (correct := sample.get("correct")) is not None:
        right = ("correct", "green") if correct else ("incorrect", "red")
    for text, style in (right, (f"{sample['tokens']:,} tokens", "dim"), (finish, "dim")):
        facts.append(f" · {text}" if text else "", f"not bold {style}")
    if sample.get("expected"):
        facts.append(f" · expected {_printable(sample['expected'])}", "not bold dim")
    rule = Rule(Text(_printable(where), "bold"), align="left", characters="─", style="dim")
    return Group(rule, facts, *(part for message in _messages(sample) for part in _said(message, full)), "")


def _read(path: Path) -> Iterator[Sample]:
    """The samples of a file that may be growing."""
    if not path.exists():
        runs = sorted(str(each.parent) for each in path.parent.parent.glob(f"*/{SAMPLES}"))
        hint = f"; the nearest is {nearest(str(path.parent), runs)}" if runs else ""
        raise UserError(f"--workdir={path.parent}: no {SAMPLES} there{hint}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                sample = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise UserError(f"{path}, line {number}: is not JSON ({error})") from error
            wrong = [
                name for name, kind in NEEDED.items() if not isinstance(sample, dict) or not _is(sample, name, kind)
            ]
            if wrong:
                raise UserError(
                    f"{path}, line {number}: is no trajectory, its {wrong[0]!r} is missing or of another kind"
                )
            yield sample


def _is(sample: Sample, name: str, kind: Any) -> bool:
    if name == "reward" and sample.get(name) in ("nan", "inf", "-inf"):  # numbers for which JSON has no word
        sample[name] = float(sample[name])
    return isinstance(sample.get(name), kind)


def _nothing(wanted: Wanted, seen: Mapping[str, Mapping[Any, None]], rewards: list[float]) -> str:
    """Why nothing was found."""
    for name, values in seen.items():
        asked = getattr(wanted, name)
        if not values:
            return "holds no trajectory yet"
        if asked is None or asked in values:
            continue
        if isinstance(asked, int):
            return f"--{name}={asked}: none there; the nearest is {min(values, key=lambda step: abs(step - asked))}"
        return (
            f"--{name}={asked}: none there; the nearest is {nearest(asked, values)} (all: {', '.join(sorted(values))})"
        )
    finite = [reward for reward in rewards if math.isfinite(reward)]
    return f"--reward={wanted.reward!r}: none; rewards there are {min(finite):.3f} to {max(finite):.3f}"


def _parts(sample: Sample) -> str:
    """What the reward was made of, as far as it is known."""
    told = [f"{name} {value:.3f}" for name, value in (sample.get("parts") or {}).items()]
    if sample.get("rewards"):
        told.append("turns " + " ".join(f"{reward:g}" for reward in sample["rewards"]))
    return f" ({', '.join(told)})" if told else ""


def _messages(sample: Sample) -> list[Mapping[str, Any]]:
    """What was said; of a single answer, its question and what stands behind its reasoning."""
    if sample.get("messages"):
        return sample["messages"]
    reasoning, response = sample.get("reasoning") or "", sample.get("response") or ""
    before, _, rest = response.partition(reasoning) if reasoning else ("", "", response)
    said = rest if reasoning and rest else response
    thought = {"reasoning_content": reasoning} if said is not response else {}
    return [{"role": "user", "content": sample.get("prompt", "")}, {"role": "assistant", "content": said, **thought}]


def _said(message: Mapping[str, Any], full: bool) -> Iterator[RenderableType]:
    role = str(message.get("role", ""))
    yield Text(_printable(role), STYLES.get(role, ""))
    if reasoning := str(message.get("reasoning_content") or "").strip():
        yield _indented(reasoning, "dim italic", full)
    if content := str(message.get("content") or "").strip():
        yield _indented(content, "", full or role != "tool")
    for call in message.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        arguments = function.get("arguments")
        given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)
        yield _indented(f"→ {function.get('name', '?')} {given}", "cyan", True)


def _indented(text: str, style: str, full: bool) -> RenderableType:
    left_out = 0 if full else len(text) - FOLDED
    if left_out > 0:
        text = f"{text[:FOLDED].rstrip()} … {left_out:,} more characters"
    return Padding(Text(_printable(text), style, overflow="fold"), (0, 0, 0, 2), expand=False)


def _printable(text: Any) -> str:
    """Text of several lines that cannot steer a terminal, whoever wrote it."""
    return "".join(c if c.isprintable() or c == "\n" else "    " if c == "\t" else "\ufffd" for c in str(text))
