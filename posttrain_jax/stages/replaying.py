"""A step's experience on the disk: collected without training on it, trained on without collecting it."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.tasks import Problem
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.verdict import Verdict
from posttrain_jax.rollout.trajectory import Segment
from posttrain_jax.run import durable
from posttrain_jax.stages.experience import Experience, Judged


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A response as it was recorded, of one turn or many (`experience.Judged`)."""

    problem: Problem
    verdict: Verdict
    reward: float
    segments: Sequence[Segment]
    length: int
    size: int
    finish: str
    words: dict
    masked: bool = False
    score: float | None = None
    opinion: float | None = None

    def shown(self, chat: Chat) -> dict:
        """What samples.jsonl says of its words."""
        return self.words


def path_of(folder: Path, step: int) -> Path:
    """The file of a step."""
    return folder / f"{step}.npz"


def write(folder: Path, step: int, experience: Experience, chat: Chat) -> None:
    """Records a step: every response's segments as arrays, the rest as JSON beside them (``facts``)."""
    arrays: dict[str, np.ndarray] = {}
    facts = []
    place = {id(response): i for i, response in enumerate(experience.everything)}
    usable = [[place.get(id(response)) for response in group] for group in experience.groups]
    for i, response in enumerate(experience.everything):
        for j, segment in enumerate(response.segments):
            found = segment._asdict().items()
            arrays |= {f"{i}.{j}.{name}": array for name, array in found if array is not None}
        facts.append(
            {
                "problem": dataclasses.asdict(response.problem) | {"entry": {}},
                "verdict": dataclasses.asdict(response.verdict),
                "reward": response.reward,
                "segments": len(response.segments),
                "length": response.length,
                "size": response.size,
                "finish": response.finish,
                "words": response.shown(chat),
                "masked": response.masked,
                "score": response.score,
                "opinion": response.opinion,
            }
        )
    told = {"responses": facts, "groups": usable, "draws": experience.draws, "rounds": experience.rounds}
    told |= {"ungraded": experience.ungraded, "temperature": experience.temperature}
    if jax.process_index() != 0:
        return
    content = io.BytesIO()
    named: dict[str, Any] = {"facts": np.array(json.dumps(told)), **arrays}
    np.savez_compressed(content, **named)
    folder.mkdir(parents=True, exist_ok=True)
    durable.replace(path_of(folder, step), content.getvalue())


def read(folder: Path, step: int) -> Experience:
    """A step's experience as `write` recorded it.

    Raises:
      UserError: the step was not recorded there.
    """
    file = path_of(folder, step)
    if not file.exists():
        known = sorted(int(path.stem) for path in folder.glob("*.npz") if path.stem.isdecimal())
        nearest = f"the last recorded is {known[-1]}" if known else "none is recorded; rl.debug='rollout_only' does"
        raise UserError(f"rl.rollouts: {file} is missing; {nearest}")
    with np.load(file) as stored:
        told = json.loads(str(stored["facts"]))
        responses: list[Judged] = []
        for i, facts in enumerate(told["responses"]):
            segments = [_segment(stored, f"{i}.{j}") for j in range(facts["segments"])]
            problem, verdict = Problem(**facts["problem"]), Verdict(**facts["verdict"])
            responses.append(Recorded(**{**facts, "problem": problem, "verdict": verdict, "segments": segments}))
    groups = [[responses[i] for i in group] for group in told["groups"]]
    return Experience(
        groups, responses, told["draws"], told["rounds"], told["ungraded"], temperature=told.get("temperature")
    )


def _segment(stored: Mapping[str, np.ndarray], place: str) -> Segment:
    names = [name for name in Segment._fields if f"{place}.{name}" in stored]
    return Segment(**{name: stored[f"{place}.{name}"] for name in names})
