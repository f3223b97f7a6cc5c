"""A shop: a small world with state, made from a seed, in which exactly one purchase is right.

The order names what to buy, some of it by conditions that only a look at the shelves decides. The agent looks, fills
its basket and pays; the reward is 1 if the basket it paid for is the order's, else 0. Words are few and short, so that
an episode fits the tiny recipe's context.
"""

from __future__ import annotations

import collections
import dataclasses
import random
from typing import Literal

from posttrain_jax.chat.format import Message
from posttrain_jax.environments.environment import Observation, Step
from posttrain_jax.environments.tools import Tool, Toolbox, ToolError, tool

Item = Literal["tea", "cup", "pen", "hat", "map", "oil", "jam", "bag", "key", "fan", "pot", "box"]
ITEMS: tuple[Item, ...] = Item.__args__
HIGHEST_LEVEL = 3


@dataclasses.dataclass
class Shelf:
    """What an item costs, and how many there are."""

    price: int
    stock: int


@dataclasses.dataclass(frozen=True)
class Order:
    """What to buy in words, and as the one basket that is right."""

    text: str
    basket: dict[str, int]


class Shop:
    """Level 0 orders one item by its number; each level above adds a wish and a kind of condition:

    1. ``as many … as N coins buy``, which prices and stock decide,
    2. ``N of the cheapest of …``,
    3. ``N …, or … if there are not enough``.
    """

    def __init__(self, level: int = 0):
        if not 0 <= level <= HIGHEST_LEVEL:
            raise ValueError(f"level {level}; expected 0 to {HIGHEST_LEVEL}")
        self._level = level
        self.shelves: dict[str, Shelf] = {}
        self.basket: collections.Counter[str] = collections.Counter()
        self.paid = False
        self._order = Order("", {})
        self._toolbox = Toolbox([tool(self.look), tool(self.add), tool(self.remove), tool(self.pay)])

    async def reset(self, seed: int) -> Observation:
        """A new shop and an order."""
        self.basket, self.paid = collections.Counter(), False
        self.shelves, self._order = opened(self._level, seed)
        return Observation([{"role": "user", "content": self._order.text}], self._toolbox.declarations)

    async def step(self, message: Message) -> Step:
        """The tools' results; done when the agent has paid, or calls no tool."""
        results = await self._toolbox.results(message)
        if results and not self.paid:
            return Step(results)
        right = self.paid and dict(+self.basket) == self._order.basket
        info = {"paid": self.paid, "basket": dict(+self.basket), "order": self._order.basket}
        return Step(results, reward=float(right), done=True, info=info)

    async def close(self) -> None:
        """Holds nothing."""

    @property
    def tools(self) -> list[Tool]:
        """What the agent can do."""
        return list(self._toolbox)

    def look(self, item: Item) -> str:
        """Price and stock of an item."""
        return f"price {self.shelves[item].price}, stock {self.shelves[item].stock}"

    def add(self, item: Item, count: int) -> str:
        """Puts items into the basket."""
        self._open()
        if not 1 <= count <= self.shelves[item].stock - self.basket[item]:
            raise ToolError(f"cannot add {count} {item}, {self.shelves[item].stock - self.basket[item]} left")
        self.basket[item] += count
        return f"basket: {self._listed()}"

    def remove(self, item: Item, count: int) -> str:
        """Takes items out of the basket."""
        self._open()
        if not 1 <= count <= self.basket[item]:
            raise ToolError(f"cannot remove {count} {item}, {self.basket[item]} in the basket")
        self.basket[item] -= count
        return f"basket: {self._listed()}"

    def pay(self) -> str:
        """Buys what is in the basket."""
        self._open()
        self.paid = True
        return f"paid {sum(self.shelves[item].price * count for item, count in self.basket.items())}"

    def _open(self) -> None:
        if self.paid:
            raise ToolError("already paid")

    def _listed(self) -> str:
        return ", ".join(f"{count} {item}" for item, count in (+self.basket).items()) or "empty"


def opened(level: int, seed: int) -> tuple[dict[str, Shelf], Order]:
    """The shelves and the order of an episode."""
    rng = random.Random(f"shop/{level}/{seed}")
    prices = rng.sample(range(1, 30), len(ITEMS))  # no two alike: there is one cheapest
    shelves = {item: Shelf(price, rng.randint(1, 9)) for item, price in zip(ITEMS, prices, strict=True)}
    return shelves, ordered(shelves, level, rng)


def question(level: int, seed: int) -> str:
    """The order of an episode, in words."""
    return opened(level, seed)[1].text


def ordered(shelves: dict[str, Shelf], level: int, rng: random.Random) -> Order:
    """An order that the shelves can fill, its items all different."""
    free = list(shelves)
    rng.shuffle(free)
    wishes, basket = [], {}
    for kind in range(level + 1):
        item = free.pop()
        shelf, count = shelves[item], rng.randint(1, shelves[item].stock)
        if kind == 0:
            wish = f"{count} {item}"
        elif kind == 1:
            coins = shelf.price * rng.randint(1, shelf.stock + 1) + rng.randrange(shelf.price)
            wish, count = f"as many {item} as {coins} coins buy", min(shelf.stock, coins // shelf.price)
        elif kind == 2:
            among = [item, free.pop(), free.pop()]
            item = min(among, key=lambda name: shelves[name].price)
            count = rng.randint(1, shelves[item].stock)
            wish = f"{count} of the cheapest of {', '.join(among)}"
        else:
            other = free.pop()
            count = rng.randint(1, shelves[other].stock)
            wish = f"{count} {item}, or {other} if there are not enough"
            item = item if shelf.stock >= count else other
        wishes.append(wish)
        basket[item] = count
    return Order(f"Buy {'; '.join(wishes)}.", basket)
