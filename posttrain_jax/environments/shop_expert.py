"""A customer of the shop who knows how: the demonstrations of `shop.Shop`."""

from __future__ import annotations

import re
from typing import Any

from posttrain_jax.chat.format import Message
from posttrain_jax.environments.shop import Shop

Look = dict[str, tuple[int, int]]  # price and stock of an item


async def demonstrate(level: int, seed: int) -> dict[str, Any]:
    """An episode that is rewarded: it looks at what decides, fills the basket, and pays.

    Returns:
      A record of `data.sources`: messages and tools.
    """
    shop = Shop(level)
    observation = await shop.reset(seed)
    messages: list[Message] = [*observation.messages]
    order = str(messages[-1]["content"])

    async def say(reasoning: str, *calls: Message) -> list[str]:
        messages.append(
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": reasoning,
                "tool_calls": [{"type": "function", "function": call} for call in calls],
            }
        )
        step = await shop.step(messages[-1])
        messages.extend(step.messages)
        return [str(message["content"]) for message in step.messages]

    unknown = undecided(order)
    told = await say("look first", *(_call("look", item=item) for item in unknown)) if unknown else []
    seen = {item: _numbers(text) for item, text in zip(unknown, told, strict=True)}
    basket, why = decided(order, seen)
    if bought := {item: count for item, count in basket.items() if count}:
        await say(why, *(_call("add", item=item, count=count) for item, count in bought.items()))
    await say("pay", _call("pay"))
    while messages[-1]["role"] == "tool":
        messages.pop()  # nobody answers what comes last
    await shop.close()
    return {"messages": messages, "tools": list(observation.tools)}


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


def _call(name: str, **arguments: Any) -> Message:
    return {"name": name, "arguments": arguments}
