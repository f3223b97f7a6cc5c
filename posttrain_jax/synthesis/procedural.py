"""The generator that needs no model: experts act, worlds check."""

from __future__ import annotations

from posttrain_jax.data.records import Record
from posttrain_jax.synthesis import expert
from posttrain_jax.synthesis.expert import Played, Unsolved
from posttrain_jax.synthesis.produce import Attempt
from posttrain_jax.synthesis.tasks import Task, provenance
from posttrain_jax.synthesis.verbs import VERBS

NAME = "procedural"


async def attempt(task: Task) -> Attempt:
    """The expert's trajectory, accepted if the world rewards it."""
    try:
        episode = await expert.played(task.world, task.level, task.seed, task.variant)
    except Unsolved as reason:
        return Attempt(task.index, None, f"unsolved: {reason}")
    if episode.reward != 1.0:
        return Attempt(task.index, None, "not rewarded")
    return Attempt(task.index, record(task, episode, NAME))


async def careless(task: Task) -> Record | None:
    """A trajectory of the same task that changes nothing and claims that it is done; None if that was rewarded, or
    leads nowhere."""
    changing = frozenset(name for name, verb in VERBS[task.world].items() if not verb.reads)
    try:
        episode = await expert.played(task.world, task.level, task.seed, task.variant, changing)
    except Unsolved:
        return None
    return record(task, episode, "careless") if episode.reward == 0.0 else None


def record(task: Task, episode: Played, generator: str) -> Record:
    """An episode as a record with its provenance."""
    return Record(
        messages=episode.messages,
        tools=[dict(tool) for tool in episode.tools],
        thinking=task.variant.thinking,
        stage="agentic",
        reward=episode.reward,
        annotations={"provenance": provenance(task, episode, generator)},
    )
