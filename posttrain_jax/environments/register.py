"""A register of people: how old some of them are together. The smallest world: one tool, a line of a question."""

from __future__ import annotations

import random
import re

from posttrain_jax.environments.appointments import NAMES
from posttrain_jax.environments.expert import Say, call
from posttrain_jax.environments.stateful import Goal, Stateful
from posttrain_jax.environments.tools import Tool, ToolError, tool

Ages = dict[str, int]


class Register(Stateful):
    """Level 0 asks for the ages of two together; each level above for one more."""

    name = "register"
    highest = 2

    @classmethod
    def opened(cls, level: int, rng: random.Random) -> tuple[Ages, Goal]:
        """Everybody's age, and a question about some."""
        ages = {name: rng.randint(1, 9) for name in NAMES}
        *first, last = rng.sample(NAMES, level + 2)
        text = f"How old are {', '.join(first)} and {last} together?"
        return ages, Goal(text, dict(ages), str(sum(ages[name] for name in (*first, last))))

    @property
    def tools(self) -> list[Tool]:
        """What the agent can do."""
        return [tool(self.age)]

    def age(self, name: str) -> str:
        """Age of one."""
        if name not in self.state:
            raise ToolError(f"no {name}")
        return str(self.state[name])


async def solve(asked: str, say: Say) -> str:
    """Looks one up after the other, and adds on the way."""
    total = 0
    for i, name in enumerate(re.findall(r"[A-Z]\w+", asked.removeprefix("How"))):
        (told,) = await say(f"so far {total}" if i > 1 else "look", call("age", name=name))
        total += int(told)
    return str(total)
