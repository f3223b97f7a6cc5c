"""A verifiable question of `data.tasks` as an environment: one answer, judged."""

from __future__ import annotations

from collections.abc import Callable

from posttrain_jax.chat.format import Message
from posttrain_jax.data.tasks import Problem
from posttrain_jax.environments.environment import Observation, Step
from posttrain_jax.rewards.verifier import verify


class SingleTurn:
    """Asks one problem and is done with the first answer.

    >>> SingleTurn(lambda seed: tasks.problem("chain_sum", level=0, index=seed))
    """

    def __init__(self, problem: Callable[[int], Problem], *, format_reward: float = 0.0):
        """``problem`` gives the problem of a seed; ``format_reward`` is what a wrong but well-formed answer gets."""
        self._problem, self._format_reward = problem, format_reward
        self._asked: Problem | None = None

    async def reset(self, seed: int) -> Observation:
        """The question, alone."""
        self._asked = self._problem(seed)
        return Observation([{"role": "user", "content": self._asked.question}])

    async def step(self, message: Message) -> Step:
        """The verifier's reward."""
        if self._asked is None:
            raise ValueError("step before reset")
        verdict = verify(self._asked, message, format_reward=self._format_reward)
        info = {"answer": verdict.answer, "correct": verdict.correct, "well_formed": verdict.well_formed}
        return Step(reward=verdict.reward, done=True, info=info)

    async def close(self) -> None:
        """Holds nothing."""
