"""Groups in flight: responses and episodes that are sampled together, some of them beyond the end of a step.

A step waits for enough groups, not for all: what is unfinished keeps its tokens and goes on under the next weights
(partial rollouts; Kimi K1.5, arXiv 2501.12599, section 2.6.2). How many steps it may go on is bounded.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from flax import nnx

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.data.tasks import Problem
from posttrain_jax.environments import worlds
from posttrain_jax.environments.agent import Seeds
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.judges.judge import seed_of
from posttrain_jax.rewards.judges.tally import Tally
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.loops import Looped, Resting
from posttrain_jax.rollout.memory import Memory
from posttrain_jax.rollout.request import Request
from posttrain_jax.rollout.rounds import Rounds
from posttrain_jax.run.recipe import RL, Episodes, Tasks
from posttrain_jax.stages.answering import answered, budgets_of, judge, prompt_tokens, shaped, within
from posttrain_jax.stages.drawing import asked, draw
from posttrain_jax.stages.experience import Experience, Judged, Trajectory
from posttrain_jax.stages.judging import Judging, Outcomes
from posttrain_jax.stages.playing import Played, make_agent
from posttrain_jax.stages.scoring import Scoring


@dataclasses.dataclass
class Group:
    """One problem that is being answered several times.

    Attributes:
      number: of the draw.
      version: of the policy that it was begun under.
      memories: what each response's sampler has said.
      tasks: a coroutine for each response.
      outcomes: a coroutine for what the judge makes of them.
    """

    number: int
    problem: Problem
    prompt: list[int]
    version: int
    memories: list[Memory]
    tasks: list[asyncio.Task[Judged]] = dataclasses.field(default_factory=list)
    outcomes: asyncio.Task[Outcomes] | None = None

    @property
    def landed(self) -> bool:
        """Whether all responses have ended."""
        return all(task.done() for task in self.tasks)

    @property
    def graded(self) -> list[Judged]:
        """Of a group that has landed, the responses that could be graded."""
        return [task.result() for task in self.tasks if not task.result().verdict.infrastructure]


class Flight:
    """Collects a step's experience from groups in flight, of one turn or many.

    ``settings.prompts`` × (1 + ``settings.carry_over``) groups are in flight or taken at any time. A step ends when
    ``settings.prompts`` groups with rewards that differ are taken, oldest first, and none is left that began
    ``settings.carry_over`` steps ago. With 0 every step waits for its last response.

    What models say of a group belongs to the step that takes it. The policy as judge is asked then, with the step's own
    weights, while others are sampled on; a judge elsewhere, or any ``beside`` the trainer, as soon as a group has
    landed. Where ``scoring`` or ``judging`` may make rewards differ, a step first takes as many groups as it needs, and
    then waits for what is said of them. So nothing of this has to be saved.

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
        scoring: Scoring | None = None,
        judging: Judging | None = None,
        beside: bool = False,
    ):
        self.settings, self.episodes, self.questions = settings, episodes, questions
        self.engine, self.chat, self.curriculum, self.seed = engine, chat, curriculum, seed
        self.scoring, self.judging = scoring, judging
        self._groups: dict[int, Group] = {}
        self._rounds: Rounds | None = None
        self._critic: Rounds | None = None
        self._loop = Looped() if beside else Resting()
        self._beside, self._budgets = beside, budgets_of(settings)
        self._heat = settings.sampling.temperature

    def close(self) -> None:
        """Gives up what is in flight."""
        self._loop.close()

    def collect(
        self, weights: nnx.State, version: int, draws: int, temperature: float | None = None, reward: Any = None
    ) -> Experience:
        """A step's experience; ``version`` counts the policies, ``draws`` the prompts drawn so far in the run.

        ``temperature`` is the settings' unless it is given; then nothing may be carried over. ``reward`` is the reward
        model's weights.

        Raises:
          UserError: what `drawing.draw` finds, not one response could be graded, or the judge cannot be asked at all.
          Exception: what an environment raises.
        """
        self._heat = self.settings.sampling.temperature if temperature is None else temperature
        return self._loop.run(self._collect(weights, version, draws, reward))

    async def _collect(self, weights: nnx.State, version: int, draws: int, reward: nnx.State | None) -> Experience:
        if self._critic:
            await self._critic.update_weights(weights, version)
        if self._rounds is None:
            self._rounds = Rounds(self.engine, weights, version=version, reuse=self.episodes.reuse)
            if self.judging and self.judging.engine:
                turns = self._rounds.turns
                self._critic = Rounds(self.judging.engine, weights, version=version, reuse=False, turns=turns)
            for group in self._groups.values():
                self._take_off(group)
        await self._rounds.update_weights(weights, version)
        settings, patient = self.settings, bool(self.judging or (self.scoring and self.scoring.asks))
        most = settings.prompts * (1 + settings.carry_over)
        pending: list[Group] = []  # taken, until it is known whether their rewards differ
        taken: list[list[Judged]] = []
        everything: list[Judged] = []
        landed = ungraded = 0
        tally, broken = Tally(), ""

        def hoped() -> int:
            return len(taken) + sum(not group.problem.canary for group in pending)

        while True:
            for number in sorted(self._groups):
                if self._groups[number].landed and self._may_be_taken(number, version, hoped()):
                    group = self._groups.pop(number)
                    broken = self._land(group) or broken
                    landed, ungraded = landed + 1, ungraded + len(group.tasks) - len(group.graded)
                    pending += [group] if group.graded else []
            enough = hoped() >= settings.prompts or landed >= settings.prompts * settings.max_rounds
            late = self._late(version)
            if pending and not (patient and (late or not enough)):
                groups, told = await self._settled(pending, reward)
                tally += told
                tally.check()
                everything += itertools.chain(*groups)
                usable = [[t for t in group if not (t.masked or t.problem.canary)] for group in groups]
                taken += [group for group in usable if len({response.reward for response in group}) > 1]
                pending = []
                continue
            if enough and not late:
                break
            while not enough and len(self._groups) + hoped() < most:
                draws = self._begin(version, draws)
            self._rounds.resume()
            groups = late if enough else self._groups.values()
            waiting = [task for group in groups for task in group.tasks if not task.done()]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not self._beside:
            await self._rounds.pause()
        if not everything:
            raise UserError(f"not one of {ungraded} responses could be graded: {broken}")
        return Experience(taken[: settings.prompts], everything, draws, -(-landed // settings.prompts), ungraded, tally)

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
        return [group for group in self._groups.values() if self._left(group, version) <= 0]

    def _left(self, group: Group, version: int) -> int:
        """Steps that a group may still go on into."""
        return self.settings.carry_over - (version - group.version)

    def _may_be_taken(self, number: int, version: int, hoped: int) -> bool:
        """Whether there is room, in this step and those to come, for all that must be taken before this group."""
        left = [self._left(group, version) for group in self._groups.values()]
        own = self._left(self._groups[number], version)
        return all(hoped + sum(each <= k for each in left) < self.settings.prompts * (k + 1) for k in range(own))

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
        if self.judging and (self._beside or self.judging.endpoint):
            group.outcomes = asyncio.get_running_loop().create_task(self._outcomes(self.judging, group))

    async def _respond(self, group: Group, memory: Memory, seed: int) -> Judged:
        problem, limits, heat = group.problem, self.engine.limits, self._heat
        if worlds.is_world(problem.task):
            agent = make_agent(self.episodes, limits, memory, self.chat, heat)
            episode = await agent.play(worlds.environment(problem), Seeds(problem.entry["seed"], seed))
            return Played(problem, episode, episode.reward)
        request = Request(group.prompt, seed, limits.max_response, heat, limits.routing)
        completion = within(self._budgets.get(problem.task), await memory.complete(request))
        return judge(
            problem,
            group.prompt,
            completion,
            answered(self.chat, completion),
            format_reward=self.settings.format_reward,
        )

    def _land(self, group: Group) -> str:
        """Moves the curriculum by a group that is no canary, and asks the judge; why a response was not graded."""
        problem, responses = group.problem, group.graded
        if responses and not problem.canary:
            solved = sum(response.verdict.correct for response in responses)
            self.curriculum.observe(problem.task, problem.level, solved, len(responses))
        if self.judging and not group.outcomes:
            group.outcomes = asyncio.get_running_loop().create_task(self._outcomes(self.judging, group))
        verdicts = (task.result().verdict for task in group.tasks)
        return next((verdict.reason for verdict in verdicts if verdict.infrastructure), "")

    async def _outcomes(self, judging: Judging, group: Group) -> Outcomes:
        await asyncio.wait(group.tasks)
        responses, seed = group.graded, seed_of(self.seed, group.number)
        return await judging.outcomes(judging.judge(self._critic), responses, seed) if responses else {}

    async def _settled(self, pending: Sequence[Group], reward: nnx.State | None) -> tuple[list[list[Judged]], Tally]:
        """The responses of groups with all that is added to their rewards, and the judge's tally.

        Nobody may depend on how long a judge takes: until it has answered, none but it decodes, unless ``beside``.
        """
        groups, found = [group.graded for group in pending], []
        if self.judging and not self._beside:
            assert self._rounds is not None
            await self._rounds.pause()
        if self.judging:
            found = await asyncio.gather(*(group.outcomes for group in pending if group.outcomes))
        if self.scoring:
            mixed = partial(self.scoring, reward, groups)
            groups = await asyncio.to_thread(mixed) if self._beside else mixed()
        groups = [self._shaped(group) for group in groups]
        return self.judging.added(groups, found) if self.judging else (groups, Tally())

    def _shaped(self, group: list[Judged]) -> list[Judged]:
        """What lengths do to the rewards of answers of one turn."""
        alone = [response for response in group if isinstance(response, Trajectory)]
        return [*shaped(alone, self.settings, self.engine.limits.max_response)] if alone else group
