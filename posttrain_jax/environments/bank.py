"""A bank: money is sent between accounts, as their balances allow."""

from __future__ import annotations

import random

from posttrain_jax.environments.appointments import NAMES
from posttrain_jax.environments.expert import Say, call, matched, sentences
from posttrain_jax.environments.stateful import Goal, Stateful
from posttrain_jax.environments.tools import Tool, ToolError, tool

Accounts = dict[str, int]


class Bank(Stateful):
    """Level 0 sends an amount; each level above adds a wish that balances decide:

    1. send half of what is there,
    2. send until two have the same,
    3. send from whoever has enough.
    """

    name = "bank"
    highest = 3

    @classmethod
    def opened(cls, level: int, rng: random.Random) -> tuple[Accounts, Goal]:
        """The accounts, and a wish for each level up to this one, between owners of its own."""
        accounts = {name: 2 * rng.randint(10, 49) for name in NAMES}
        goal, free, wishes = dict(accounts), rng.sample(NAMES, len(NAMES)), []
        for kind in range(level + 1):
            source, target = free.pop(), free.pop()
            amount = rng.randint(1, accounts[source])
            if kind == 0:
                wishes.append(f"Send {amount} from {source} to {target}.")
            elif kind == 1:
                wishes.append(f"Send half of what {source} has to {target}.")
                amount = accounts[source] // 2
            elif kind == 2:
                if accounts[source] <= accounts[target]:
                    accounts[source] = goal[source] = accounts[target] + 2 * rng.randint(1, 20)
                wishes.append(f"Send from {source} to {target} until both have the same.")
                amount = (accounts[source] - accounts[target]) // 2
            else:
                other = free.pop()
                amount = rng.randint(10, accounts[other])
                wishes.append(f"Send {amount} to {target}, from {source}, or from {other} if that is too little.")
                source = source if accounts[source] >= amount else other
            goal[source] -= amount
            goal[target] += amount
        return accounts, Goal(" ".join(wishes), goal)

    @property
    def tools(self) -> list[Tool]:
        """What the agent can do."""
        return [tool(self.balance), tool(self.send), tool(self.owners)]

    def balance(self, owner: str) -> str:
        """What an owner has."""
        return f"{owner} has {self._has(owner)}"

    def send(self, source: str, target: str, amount: int) -> str:
        """Sends an amount."""
        has, _ = self._has(source), self._has(target)
        if not 1 <= amount <= has:
            raise ToolError(f"cannot send {amount}, {source} has {has}")
        self.state[source] -= amount
        self.state[target] += amount
        return f"{source} has {self.state[source]}, {target} has {self.state[target]}"

    def owners(self) -> str:
        """All owners."""
        return ", ".join(self.state)

    def _has(self, owner: str) -> int:
        if owner not in self.state:
            raise ToolError(f"no owner {owner}")
        return self.state[owner]


async def solve(asked: str, say: Say) -> str:
    """Grants the wishes one after another, each after a look at the balances that decide it."""

    async def balances(*owners: str) -> list[int]:
        told = await say("look first", *(call("balance", owner=owner) for owner in owners))
        return [int(text.split()[-1]) for text in told]

    async def send(why: str, source: str, target: str, amount: int) -> None:
        await say(why, call("send", source=source, target=target, amount=amount))

    for wish in sentences(asked):
        if found := matched(r"Send (\d+) from (\w+) to (\w+)", wish):
            await send("send it", found[2], found[3], int(found[1]))
        elif found := matched(r"Send half of what (\w+) has to (\w+)", wish):
            (has,) = await balances(found[1])
            await send(f"{has} / 2 = {has // 2}", found[1], found[2], has // 2)
        elif found := matched(r"Send from (\w+) to (\w+) until both have the same", wish):
            more, less = await balances(found[1], found[2])
            await send(f"({more} - {less}) / 2 = {(more - less) // 2}", found[1], found[2], (more - less) // 2)
        elif found := matched(r"Send (\d+) to (\w+), from (\w+), or from (\w+) if that is too little", wish):
            amount = int(found[1])
            (has,) = await balances(found[3])
            source = found[3] if has >= amount else found[4]
            await send(f"{found[3]} has {has}: from {source}", source, found[2], amount)
    return "Done."
