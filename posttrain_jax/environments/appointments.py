"""A calendar of one week, in which appointments are booked, cancelled and moved around each other."""

from __future__ import annotations

import copy
import random
from typing import Literal

from posttrain_jax.environments.expert import Say, call, matched, sentences
from posttrain_jax.environments.stateful import Goal, Stateful
from posttrain_jax.environments.tools import Tool, ToolError, tool

Day = Literal["mon", "tue", "wed", "thu", "fri"]
DAYS: tuple[Day, ...] = Day.__args__
HOURS = range(8, 18)
NAMES = ("Ann", "Bob", "Cat", "Dan", "Eva", "Flo", "Gus", "Hal", "Ida", "Jim")
Week = dict[str, dict[int, str]]


class Appointments(Stateful):
    """Level 0 books an hour that is free; each level above adds a wish that only a look decides:

    1. book the first free hour,
    2. cancel somebody's hour,
    3. move somebody to another day, where the hour may be taken.
    """

    name = "calendar"
    highest = 3

    @classmethod
    def opened(cls, level: int, rng: random.Random) -> tuple[Week, Goal]:
        """A week, and a wish for each level up to this one, on days of its own."""
        week: Week = {}
        for day in DAYS:
            hours = sorted(rng.sample(HOURS[:-2], rng.randint(2, 4)))
            week[day] = dict(zip(hours, rng.sample(NAMES, len(hours)), strict=True))
        goal, days, wishes = copy.deepcopy(week), rng.sample(DAYS, len(DAYS)), []
        for kind in range(level + 1):
            day, there = days.pop(), week[days[0]]
            who = rng.choice(list(week[day].values()))
            new = rng.choice([name for name in NAMES if name not in week[day].values()])
            if kind == 0:
                hour = rng.choice([hour for hour in HOURS if hour not in week[day]])
                wishes.append(f"Book {new} on {day} at {hour}.")
                goal[day][hour] = new
            elif kind == 1:
                wishes.append(f"Book {new} on {day} at the first free hour.")
                goal[day][first_free(week[day])] = new
            elif kind == 2:
                wishes.append(f"Cancel {who} on {day}.")
                del goal[day][hour_of(week[day], who)]
            else:
                hour = hour_of(week[day], who)
                if rng.random() < 0.5 and who not in there.values():  # the hour is often taken
                    there.setdefault(hour, rng.choice([name for name in NAMES if name not in (who, *there.values())]))
                    goal[days[0]] = dict(there)
                wishes.append(f"Move {who} from {day} to {days[0]}, to the same hour or the next free one.")
                del goal[day][hour]
                goal[days[0]][first_free(there, hour)] = who
        return week, Goal(" ".join(wishes), goal)

    @property
    def tools(self) -> list[Tool]:
        """What the agent can do."""
        return [tool(self.show), tool(self.book), tool(self.cancel)]

    def show(self, day: Day) -> str:
        """Taken hours of a day."""
        return ", ".join(f"{hour} {name}" for hour, name in sorted(self.state[day].items())) or "all free"

    def book(self, day: Day, hour: int, name: str) -> str:
        """Books an hour, 8 to 17."""
        if hour not in HOURS:
            raise ToolError(f"no hour {hour}, only {HOURS[0]} to {HOURS[-1]}")
        if hour in self.state[day]:
            raise ToolError(f"{day} {hour} is taken by {self.state[day][hour]}")
        self.state[day][hour] = name
        return f"booked {day} {hour}"

    def cancel(self, day: Day, hour: int) -> str:
        """Frees an hour."""
        if hour not in self.state[day]:
            raise ToolError(f"{day} {hour} is free")
        return f"freed {day} {hour}, was {self.state[day].pop(hour)}"


def first_free(day: dict[int, str], earliest: int = HOURS[0]) -> int:
    """The first hour of a day that nobody has."""
    return next(hour for hour in HOURS if hour >= earliest and hour not in day)


def hour_of(day: dict[int, str], name: str) -> int:
    """The hour that somebody has."""
    return next(hour for hour, who in day.items() if who == name)


async def solve(asked: str, say: Say) -> str:
    """Grants the wishes one after another, each after a look at its days."""
    for wish in sentences(asked):
        if found := matched(r"Book (\w+) on (\w+) at (\d+)", wish):
            await say("it is free", call("book", day=found[2], hour=int(found[3]), name=found[1]))
        elif found := matched(r"Book (\w+) on (\w+) at the first free hour", wish):
            (shown,) = await say("look first", call("show", day=found[2]))
            hour = first_free(taken(shown))
            await say(f"first free: {hour}", call("book", day=found[2], hour=hour, name=found[1]))
        elif found := matched(r"Cancel (\w+) on (\w+)", wish):
            (shown,) = await say("look first", call("show", day=found[2]))
            hour = hour_of(taken(shown), found[1])
            await say(f"{found[1]} has {hour}", call("cancel", day=found[2], hour=hour))
        elif found := matched(r"Move (\w+) from (\w+) to (\w+), to the same hour or the next free one", wish):
            who, day, other = found.groups()
            old, new = map(taken, await say("look first", call("show", day=day), call("show", day=other)))
            hour = hour_of(old, who)
            free = first_free(new, hour)
            why = f"{who} has {hour}, free on {other}: {free}"
            await say(why, call("cancel", day=day, hour=hour), call("book", day=other, hour=free, name=who))
    return "Done."


def taken(shown: str) -> dict[int, str]:
    """What `Appointments.show` showed."""
    pairs = [entry.split() for entry in shown.split(", ")] if shown != "all free" else []
    return {int(hour): name for hour, name in pairs}
