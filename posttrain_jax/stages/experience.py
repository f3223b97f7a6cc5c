"""Collecting what reinforcement learning learns from: prompts, responses, rewards, groups worth training on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import jax
import numpy as np
import xxhash
from flax import nnx

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.data.tasks import AREAS, Problem
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.parallel import exchange
from posttrain_jax.rewards.alarm import hacked
from posttrain_jax.rewards.judges.tally import Tally
from posttrain_jax.rewards.length_bias import correlation
from posttrain_jax.rewards.shaping import length_rewards, overlong_penalty
from posttrain_jax.rewards.verdict import Verdict
from posttrain_jax.rewards.verifier import verify
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Completion
from posttrain_jax.rollout.trajectory import Segment, answer
from posttrain_jax.run.recipe import RL, Tasks

if TYPE_CHECKING:
    from posttrain_jax.stages.judging import Judging

CUT_OFF = ("length", "budget", "turns", "tokens", "answer", "context", "seconds")
HOPELESS = 1000  # prompts in a row that are too long before no prompt is taken to fit


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One response, judged.

    Attributes:
      masked: its judge could not be asked about it; it is not trained on.
      score: a reward model's, before anything is made of it.
    """

    problem: Problem
    prompt: list[int]
    completion: Completion
    message: dict
    verdict: Verdict
    reward: float
    masked: bool = False
    score: float | None = None

    @property
    def segments(self) -> list[Segment]:
        """What is trained, in one piece."""
        return [answer(self.prompt, self.completion)]

    @property
    def length(self) -> int:
        """Tokens that were sampled."""
        return len(self.completion.tokens)

    @property
    def size(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + self.length

    @property
    def finish(self) -> str:
        """Why it ended."""
        return self.completion.finish

    def shown(self, chat: Chat) -> dict:
        """What samples.jsonl says of its words."""
        return {
            "prompt": self.problem.question,
            "response": chat.tokenizer.decode([int(t) for t in self.completion.tokens]),
            "reasoning": self.message.get("reasoning_content", ""),
        }


class Judged(Protocol):
    """Anything that was sampled and judged, of one turn or many: a `Trajectory`, or an episode (`playing.Played`)."""

    @property
    def problem(self) -> Problem: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def reward(self) -> float: ...
    @property
    def segments(self) -> Sequence[Segment]: ...
    @property
    def length(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def finish(self) -> str: ...
    def shown(self, chat: Chat) -> dict: ...


@dataclasses.dataclass(frozen=True)
class Experience:
    """A step's rollouts.

    Attributes:
      groups: responses to one prompt each, with rewards that differ; what is trained on.
      everything: all trajectories sampled and judged, for the statistics.
      ungraded: responses that a failure of the grader left without a verdict; they are nowhere else.
      draws: prompts drawn from the curriculum so far in the run.
      rounds: batches of prompts it took.
      tally: what a model that judged them did.
    """

    groups: Sequence[Sequence[Judged]]
    everything: Sequence[Judged]
    draws: int
    rounds: int
    ungraded: int = 0
    tally: Tally = Tally()

    @property
    def hacked(self) -> list[Judged]:
        """Answers judged correct on canaries, which have no correct answer."""
        found = hacked([t.problem.canary for t in self.everything], [t.verdict for t in self.everything])
        return [self.everything[i] for i in found]


def prompt_tokens(chat: Chat, system: str, question: str) -> list[int]:
    """The tokens of a question up to where the model takes over."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return chat.encode(messages, add_generation_prompt=True)[0]


def answered(chat: Chat, completion: Completion) -> dict:
    """The message that a response stands for; one that was cut off has no answer."""
    message = chat.parse(chat.tokenizer.decode([int(t) for t in completion.tokens]))
    return message if completion.finish == "stop" else {**message, "content": ""}


def judge(
    problem: Problem, prompt: list[int], completion: Completion, message: dict, *, format_reward: float
) -> Trajectory:
    """Verifies a response; its reward is the verdict's."""
    verdict = verify(problem, message, format_reward=format_reward)
    return Trajectory(problem, prompt, completion, message, verdict, verdict.reward)


def judge_all(
    chat: Chat,
    problems: list[Problem],
    prompts: list[list[int]],
    answers: list[list[Completion]],
    *,
    format_reward: float,
) -> list[list[Trajectory]]:
    """`judge` of every response; of several processes each reads and verifies its share of the problems."""

    def verdicts(chosen: Sequence[int]) -> list[list[tuple[dict, Verdict, float]]]:
        judged = [
            [judge(problems[i], prompts[i], c, answered(chat, c), format_reward=format_reward) for c in answers[i]]
            for i in chosen
        ]
        return [[(t.message, t.verdict, t.reward) for t in group] for group in judged]

    found = exchange.spread(range(len(problems)), verdicts)
    return [
        [Trajectory(problem, prompt, c, *told) for c, told in zip(completions, group, strict=True)]
        for problem, prompt, completions, group in zip(problems, prompts, answers, found, strict=True)
    ]


def budgets_of(settings: RL) -> dict[str, int]:
    """The most tokens of an answer, task by task, where there is a limit."""
    return {task: int(tokens) for task, _, tokens in (budget.partition("=") for budget in settings.budgets)}


def within(budget: int | None, completion: Completion) -> Completion:
    """The response, cut off where its budget of tokens ends (Kimi K2, arXiv 2507.20534, section 3.2.3), if any."""
    if budget is None or len(completion.tokens) <= budget:
        return completion
    over = len(completion.tokens) - budget
    versions, routing = (None if x is None else x[:-over] for x in (completion.versions, completion.routing))
    tokens, logprobs = completion.tokens[:budget], completion.logprobs[:budget]
    return Completion(tokens, logprobs, "budget", versions=versions, routing=routing)


def shaped(group: list[Trajectory], settings: RL, longest: int) -> list[Trajectory]:
    """The answers to one prompt with what their lengths do to their rewards; ``longest`` tokens is their limit."""
    lengths = [len(t.completion.tokens) for t in group]
    extra = [
        overlong_penalty(length, limit=longest, buffer=settings.overlong_buffer, penalty=settings.overlong_penalty)
        - settings.budget_penalty * (t.completion.finish == "budget")
        for t, length in zip(group, lengths, strict=True)
    ]
    if settings.length_reward:
        short = length_rewards(lengths, [t.verdict.correct for t in group])
        extra = [e + settings.length_reward * s for e, s in zip(extra, short, strict=True)]
    return [dataclasses.replace(t, reward=t.reward + e) for t, e in zip(group, extra, strict=True)]


def collect(
    settings: RL,
    questions: Tasks,
    engine: Engine,
    weights: nnx.State,
    chat: Chat,
    curriculum: Curriculum,
    key: jax.Array,
    draws: int,
    judging: Judging | None = None,
    mix: Callable[[list[list[Trajectory]]], list[list[Trajectory]]] = lambda groups: groups,
) -> Experience:
    """Samples groups until ``settings.prompts`` of them have rewards that differ (DAPO's dynamic sampling).

    A group whose rewards are all equal has no gradient: it is dropped and another prompt drawn in its place, for at
    most ``settings.max_rounds`` batches. The curriculum sees every group. What could not be graded is left out of its
    group, and a canary is never trained on. ``mix`` may change the rewards of judged groups before length shapes
    them, and ``judging`` adds a model's opinion.

    Raises:
      UserError: what `draw` finds, not one response could be graded, or the judge cannot be asked at all.
    """
    limits = engine.limits
    budgets = budgets_of(settings)
    groups: list[list[Trajectory]] = []
    everything: list[Trajectory] = []
    rounds, ungraded, tally = 0, 0, Tally()
    while rounds < settings.max_rounds and len(groups) < settings.prompts:
        problems, prompts = [], []
        while len(problems) < settings.prompts - len(groups):
            problem, prompt, draws = draw(questions, curriculum, chat, draws, limits.max_prompt)
            problems.append(problem)
            prompts.append(prompt)
        answers = engine.generate(
            weights,
            prompts,
            jax.random.fold_in(key, rounds),
            samples=settings.group_size,
            temperature=settings.sampling.temperature,
        )
        rounds += 1
        answers = [
            [within(budgets.get(problem.task), c) for c in completions]
            for problem, completions in zip(problems, answers, strict=True)
        ]
        judged = judge_all(chat, problems, prompts, answers, format_reward=settings.format_reward)
        graded = [[t for t in group if not t.verdict.infrastructure] for group in judged]
        ungraded += sum(map(len, judged)) - sum(map(len, graded))
        found = [shaped(group, settings, limits.max_response) for group in mix([group for group in graded if group])]
        if judging:
            found, told = judging(weights, found, jax.random.fold_in(key, settings.max_rounds + rounds))
            tally += told
        for group in found:
            problem = group[0].problem
            everything += group
            if problem.canary:
                continue
            curriculum.observe(problem.task, problem.level, sum(t.verdict.correct for t in group), len(group))
            usable = [t for t in group if not t.masked]
            if len({t.reward for t in usable}) > 1:
                groups.append(usable)
        if not everything:
            raise UserError(f"not one of {ungraded} responses could be graded: {judged[-1][-1].verdict.reason}")
    return Experience(groups, everything, draws, rounds, ungraded, tally)


def asked(questions: Tasks, name: str, level: int, index: int) -> Problem:
    """A problem to learn from, or a canary in its place: the same one every time.

    Raises:
      UserError: what `worlds.problem` finds.
    """
    problem = worlds.problem(name, level, index, split="train", seed=questions.seed)
    chance = xxhash.xxh32_intdigest(f"canary/{questions.seed}/{name}/{index}".encode()) / 2**32
    canary = chance < questions.canary_share and worlds.has_canaries(name)
    return dataclasses.replace(problem, canary=problem.canary or canary)


def draw(
    questions: Tasks, curriculum: Curriculum, chat: Chat, draws: int, longest: int
) -> tuple[Problem, list[int], int]:
    """The next problem whose prompt has at most ``longest`` tokens, its prompt, and ``draws`` after it.

    The prompt of a world's problem is empty here: the world begins the conversation.

    Raises:
      UserError: prompt after prompt is longer.
    """
    problem, prompt = None, []
    for _ in range(HOPELESS):
        problem = asked(questions, *curriculum.choose(draws))
        draws += 1
        world = worlds.is_world(problem.task)
        prompt = [] if world else prompt_tokens(chat, questions.system, problem.question)
        if len(prompt) <= longest:
            return problem, prompt, draws
    assert problem is not None
    raise UserError(
        f"{HOPELESS} prompts in a row are longer than rollout.max_prompt={longest}; the last has {len(prompt)} tokens"
        f" (task {problem.task} level {problem.level}): set rollout.max_prompt higher"
    )


def statistics(experience: Experience) -> dict[str, float]:
    """What a step's rollouts say about the policy; ``score_…`` are a reward model's correlations."""
    everything = experience.everything
    lengths = np.array([t.length for t in everything])
    scores = np.array([t.score for t in everything if isinstance(t, Trajectory) and t.score is not None])
    scored = {}
    if len(scores):
        right = np.array([float(t.verdict.correct) for t in everything])
        scored = {
            "score": float(scores.mean()),
            "score_length": correlation(scores, lengths),
            "score_correct": correlation(scores, right),
        }
    return {
        "reward": float(np.mean([t.reward for t in everything])),
        "pass_rate": float(np.mean([t.verdict.correct for t in everything])),
        "well_formed": float(np.mean([t.verdict.well_formed for t in everything])),
        "response_length": float(np.mean([t.length for t in everything])),
        "cut_off": float(np.mean([t.finish in CUT_OFF for t in everything])),
        "repeating": float(np.mean([t.finish == "repetition" for t in everything])),
        "level": float(np.mean([t.problem.level for t in everything])),
        "ungraded": float(experience.ungraded),
        "hacked": float(len(experience.hacked)),
        "groups": float(len(experience.groups)),
        "rounds": float(experience.rounds),
        **experience.tally.metrics(),
        **scored,
        **_by_area(everything),
    }


def _by_area(everything: Sequence[Judged]) -> dict[str, float]:
    """``reward/arithmetic`` and the like, of every area that was asked; a world is an area of its own."""
    found: dict[str, float] = {}
    areas = [AREAS.get(t.problem.task, t.problem.task) for t in everything]
    for area in sorted(set(areas)):
        own = [t for t, each in zip(everything, areas, strict=True) if each == area]
        found[f"reward/{area}"] = float(np.mean([t.reward for t in own]))
        found[f"pass_rate/{area}"] = float(np.mean([t.verdict.correct for t in own]))
        found[f"response_length/{area}"] = float(np.mean([t.length for t in own]))
    return found


def sample(chat: Chat, stage: str, step: int, trajectory: Judged) -> dict:
    """A trajectory as it is written to samples.jsonl."""
    return {
        "stage": stage,
        "step": step,
        "task": trajectory.problem.task,
        "level": trajectory.problem.level,
        **trajectory.shown(chat),
        "answer": trajectory.verdict.answer,
        "expected": trajectory.problem.answer,
        "reward": trajectory.reward,
        "correct": trajectory.verdict.correct,
        "canary": trajectory.problem.canary,
        "tokens": trajectory.length,
        "finish": trajectory.finish,
        **({"score": trajectory.score} if isinstance(trajectory, Trajectory) and trajectory.score is not None else {}),
    }
