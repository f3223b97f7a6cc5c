"""A customer of the shop who knows how: solves what `shop.Shop` asks."""

from __future__ import annotations

import re

from posttrain_jax.environments.expert import Say, call

Look = dict[str, tuple[int, int]]  # price and stock of an item


async def solve(order: str, say: Say) -> None:
    """Looks at what decides, fills the basket, and pays."""
    unknown = undecided(order)
    told = await say("look first", *(call("look", item=item) for item in unknown)) if unknown else []
    seen = {item: _numbers(text) for item, text in zip(unknown, told, strict=True)}
    basket, why = decided(order, seen)
    if bought := {item: count for item, count in basket.items() if count}:
        await say(why, *(call("add", item=item, count=count) for item, count in bought.items()))
    await say("pay", call("pay"))


def undecided(order: str) -> list[str]:
    """The items that an order wants looked at."""
    items: list[str] = []
    for wish in _wishes(order):
        if found := re.fullmatch(r"as many (\w+) as \d+ coins buy", wish):
            items.append(found[1])
        elif found := re.fullmatch(r"\d+ of the cheapest of (.+)", wish):
            items += found[1].split(", ")
        elif found := re.fullmatch(r"\d+ (\w+), or \w+ if there are not enough", wish):
            items.append(found[1])
    return items


def decided(order: str, seen: Look) -> tuple[dict[str, int], str]:
    """The basket that an order means, and the reasons, one for each wish."""
    basket: dict[str, int] = {}
    reasons: list[str] = []
    for wish in _wishes(order):
        if found := re.fullmatch(r"as many (\w+) as (\d+) coins buy", wish):
            item, coins = found[1], int(found[2])
            price, stock = seen[item]
            count = min(stock, coins // price)
            reasons.append(f"{coins} / {price} = {coins // price}, stock {stock}: {count} {item}")
        elif found := re.fullmatch(r"(\d+) of the cheapest of (.+)", wish):
            item, count = min(found[2].split(", "), key=lambda name: seen[name][0]), int(found[1])
            reasons.append(f"{item} is cheapest: {count} {item}")
        elif found := re.fullmatch(r"(\d+) (\w+), or (\w+) if there are not enough", wish):
            count, stock = int(found[1]), seen[found[2]][1]
            item = found[2] if stock >= count else found[3]
            reasons.append(f"stock {stock}: {count} {item}")
        else:
            number, item = wish.split()
            count = int(number)
            reasons.append(wish)
        basket[item] = count
    return basket, "; ".join(reasons)


def _wishes(order: str) -> list[str]:
    return order.removeprefix("Buy ").removesuffix(".").split("; ")


def _numbers(shelf: str) -> tuple[int, int]:
    price, stock = map(int, re.findall(r"\d+", shelf))
    return price, stock
