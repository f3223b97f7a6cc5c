"""Groups in flight: responses and episodes that are sampled together, some of them beyond the end of a step.

A step waits for enough groups, not for all: what is unfinished keeps its tokens and goes on under the next weights
(partial rollouts; Kimi K1.5, arXiv 2501.12599, section 2.6.2). How many steps it may go on is bounded.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.data.tasks import Problem
from posttrain_jax.environments import worlds
from posttrain_jax.environments.agent import Seeds
from posttrain_jax.errors import UserError
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.loops import Looped, Resting
from posttrain_jax.rollout.memory import Memory
from posttrain_jax.rollout.request import Request
from posttrain_jax.rollout.rounds import Rounds
from posttrain_jax.run.recipe import RL, Episodes, Tasks
from posttrain_jax.stages.answering import answered, budgets_of, judge, prompt_tokens, shaped, within
from posttrain_jax.stages.drawing import asked, draw
from posttrain_jax.stages.experience import Experience, Judged, Trajectory
from posttrain_jax.stages.playing import Played, make_agent


@dataclasses.dataclass
class Group:
    """One problem that is being answered several times.

    Attributes:
      number: of the draw.
      version: of the policy that it was begun under.
      memories: what each response's sampler has said.
      tasks: a coroutine for each response.
    """

    number: int
    problem: Problem
    prompt: list[int]
    version: int
    memories: list[Memory]
    tasks: list[asyncio.Task[Judged]] = dataclasses.field(default_factory=list)

    @property
    def landed(self) -> bool:
        """Whether all responses have ended."""
        return all(task.done() for task in self.tasks)


class Flight:
    """Collects a step's experience from groups in flight, of one turn or many.

    ``settings.prompts`` × (1 + ``settings.carry_over``) groups are in flight or taken at any time. A step ends when
    ``settings.prompts`` groups with rewards that differ are taken, oldest first, and none is left that began
    ``settings.carry_over`` steps ago. With 0 every step waits for its last response.

    Where environments only compute, everything is a function of weights, draws and ``seed``. Between two steps all
    that matters is tokens: `state` saves them, and a run that is resumed goes on with the same bits.

    ``beside`` the trainer, on an engine of other devices, sampling goes on while the trainer learns: nothing waits, and
    nothing repeats bit for bit. What `state` saves is not lost then either.
    """

    def __init__(
        self,
        settings: RL,
        episodes: Episodes,
        questions: Tasks,
        engine: Engine,
        chat: Chat,
        curriculum: Curriculum,
        seed: int,
        *,
        beside: bool = False,
    ):
        self.settings, self.episodes, self.questions = settings, episodes, questions
        self.engine, self.chat, self.curriculum, self.seed = engine, chat, curriculum, seed
        self._groups: dict[int, Group] = {}
        self._rounds: Rounds | None = None
        self._loop = Looped() if beside else Resting()
        self._beside, self._budgets = beside, budgets_of(settings)
        self._heat = settings.sampling.temperature

    def close(self) -> None:
        """Gives up what is in flight."""
        self._loop.close()

    def collect(self, weights: nnx.State, version: int, draws: int, temperature: float | None = None) -> Experience:
        """A step's experience; ``version`` counts the policies, ``draws`` the prompts drawn so far in the run.

        ``temperature`` is the settings' unless it is given; then nothing may be carried over.

        Raises:
          UserError: what `drawing.draw` finds, or not one response could be graded.
          Exception: what an environment raises.
        """
        self._heat = self.settings.sampling.temperature if temperature is None else temperature
        return self._loop.run(self._collect(weights, version, draws))

    async def _collect(self, weights: nnx.State, version: int, draws: int) -> Experience:
        if self._rounds is None:
            self._rounds = Rounds(self.engine, weights, version=version, reuse=self.episodes.reuse)
            for group in self._groups.values():
                self._take_off(group)
        await self._rounds.update_weights(weights, version)
        settings = self.settings
        most = settings.prompts * (1 + settings.carry_over)
        taken: list[list[Judged]] = []
        everything: list[Judged] = []
        landed = ungraded = 0
        broken = ""
        while True:
            for number in sorted(self._groups):
                late = [other for other in self._late(version) if other.number != number]
                if self._groups[number].landed and len(taken) + len(late) < settings.prompts:
                    group = self._groups.pop(number)
                    responses, reason = self._land(group)
                    broken = reason or broken
                    landed, ungraded = landed + 1, ungraded + len(group.tasks) - len(responses)
                    everything += responses
                    if not group.problem.canary and len({response.reward for response in responses}) > 1:
                        taken.append(responses)
            enough = len(taken) == settings.prompts or landed >= settings.prompts * settings.max_rounds
            if enough and not self._late(version):
                break
            while not enough and len(self._groups) + len(taken) < most:
                draws = self._begin(version, draws)
            groups = self._late(version) if enough else self._groups.values()
            waiting = [task for group in groups for task in group.tasks if not task.done()]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not self._beside:
            await self._rounds.pause()
        if not everything:
            raise UserError(f"not one of {ungraded} responses could be graded: {broken}")
        return Experience(taken, everything, draws, -(-landed // settings.prompts), ungraded)

    def state(self) -> list[dict[str, Any]]:
        """The groups in flight, JSON-able; to be asked between two steps."""
        return self._loop.run(self._state())

    async def _state(self) -> list[dict[str, Any]]:
        begun = await self._rounds.begun() if self._rounds else {}
        return [
            {
                "number": group.number,
                "problem": [group.problem.task, group.problem.level, group.problem.index],
                "version": group.version,
                "memories": [memory.state(begun) for memory in group.memories],
            }
            for group in self._groups.values()
        ]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Goes back to a saved `state`."""
        for saved in state:
            problem = asked(self.questions, *saved["problem"])
            world = worlds.is_world(problem.task)
            prompt = [] if world else prompt_tokens(self.chat, self.questions.system, problem.question)
            memories = [Memory.restored(memory) for memory in saved["memories"]]
            self._groups[saved["number"]] = Group(saved["number"], problem, prompt, saved["version"], memories)

    def _late(self, version: int) -> list[Group]:
        """The groups that this step has to take."""
        return [group for group in self._groups.values() if version - group.version >= self.settings.carry_over]

    def _begin(self, version: int, draws: int) -> int:
        longest = self.engine.limits.max_prompt
        problem, prompt, after = draw(self.questions, self.curriculum, self.chat, draws, longest)
        memories = [Memory() for _ in range(self.settings.group_size)]
        self._groups[draws] = Group(draws, problem, prompt, version, memories)
        self._take_off(self._groups[draws])
        return after

    def _take_off(self, group: Group) -> None:
        assert self._rounds is not None
        for place, memory in enumerate(group.memories):
            seed = int(np.random.SeedSequence([self.seed, group.number, place]).generate_state(1)[0])
            memory.sampler = self._rounds
            group.tasks.append(asyncio.get_running_loop().create_task(self._respond(group, memory, seed)))

    async def _respond(self, group: Group, memory: Memory, seed: int) -> Judged:
        problem, limits, heat = group.problem, self.engine.limits, self._heat
        if worlds.is_world(problem.task):
            agent = make_agent(self.episodes, limits, memory, self.chat, heat)
            return Played(problem, await agent.play(worlds.environment(problem), Seeds(problem.entry["seed"], seed)))
        request = Request(group.prompt, seed, limits.max_response, heat, limits.routing)
        completion = within(self._budgets.get(problem.task), await memory.complete(request))
        return judge(
            problem,
            group.prompt,
            completion,
            answered(self.chat, completion),
            format_reward=self.settings.format_reward,
        )

    def _land(self, group: Group) -> tuple[list[Judged], str]:
        """The responses that could be graded; a canary's do not move the curriculum."""
        problem, everyone = group.problem, [task.result() for task in group.tasks]
        broken = next((response.verdict.reason for response in everyone if response.verdict.infrastructure), "")
        responses = [response for response in everyone if not response.verdict.infrastructure]
        if not worlds.is_world(problem.task):
            alone = [response for response in responses if isinstance(response, Trajectory)]
            responses: list[Judged] = [*shaped(alone, self.settings, self.engine.limits.max_response)]
        if responses and not problem.canary:
            solved = sum(response.verdict.correct for response in responses)
            self.curriculum.observe(problem.task, problem.level, solved, len(responses))
        return responses, broken
