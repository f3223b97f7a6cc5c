"""What was said to one caller: kept, so that a conversation that is begun again comes to where it was."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from posttrain_jax.rollout.request import Completion, Request
from posttrain_jax.rollout.rounds import Rounds

ARRAYS = ("tokens", "logprobs", "versions", "routing")


class Memory:
    """A `request.Sampler` for one caller, who asks one thing after another and always the same.

    Attributes:
      said: completions so far.
      sampler: what answers the rest.
    """

    def __init__(self, sampler: Rounds | None = None):
        self.sampler = sampler
        self.said: list[Completion] = []
        self._told, self._asked, self._begun = 0, None, None

    async def complete(self, request: Request) -> Completion:
        """What was said to this before, or else the sampler's answer, which may have been begun before."""
        if self._told == len(self.said):
            assert self.sampler is not None
            self._asked, begun, self._begun = request, self._begun, None
            self.said.append(await self.sampler.complete(request, begun))
            self._asked = None
        self._told += 1
        return self.said[self._told - 1]

    def state(self, begun: Mapping[int, Completion | None]) -> dict[str, Any]:
        """All of it, JSON-able; ``begun`` is what `Rounds.begun` says."""
        part = begun.get(id(self._asked)) if self._asked else None
        return {"said": [_packed(one) for one in self.said], "begun": part and _packed(part)}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Memory:
        """From a saved `state`; the sampler is to be given."""
        memory = cls()
        memory.said = [_unpacked(one) for one in state["said"]]
        memory._begun = state["begun"] and _unpacked(state["begun"])
        return memory


def _packed(completion: Completion) -> dict[str, Any]:
    arrays = {name: getattr(completion, name) for name in ARRAYS}
    return {
        "finish": completion.finish,
        "drafts": [completion.drafted, completion.kept],
        **{
            name: [
                str(array.dtype),
                list(array.shape),
                base64.b85encode(array.tobytes()).decode(),
            ]
            for name, array in arrays.items()
            if array is not None
        },
    }


def _unpacked(state: Mapping[str, Any]) -> Completion:
    arrays = {
        name: np.frombuffer(base64.b85decode(state[name][2]), state[name][0]).reshape(state[name][1])
        for name in ARRAYS
        if name in state
    }
    drafted, kept = state["drafts"]
    return Completion(finish=state["finish"], drafted=drafted, kept=kept, **arrays)
