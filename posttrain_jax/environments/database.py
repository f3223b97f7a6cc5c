"""Two small tables, which are queried and updated by row."""

from __future__ import annotations

import copy
import random
from typing import Literal

from posttrain_jax.environments.appointments import NAMES
from posttrain_jax.environments.expert import Say, call, matched, sentences
from posttrain_jax.environments.stateful import Goal, Stateful
from posttrain_jax.environments.tools import Tool, ToolError, tool

CITIES = ("rome", "oslo", "bonn", "lima", "kyiv", "bern", "nice", "bath", "cork", "riga", "graz", "pisa")
TEAMS = ("red", "blue", "gold")
COLUMNS = {"staff": ("name", "city", "pay"), "teams": ("team", "boss")}
Table = Literal["staff", "teams"]
Tables = dict[str, dict[int, dict[str, str]]]


class Database(Stateful):
    """Level 0 sets a cell; each level above adds a wish:

    1. set a cell of a row that has to be found,
    2. change all rows of a city,
    3. a question that needs both tables; the last words are the answer.
    """

    name = "database"
    highest = 3

    @classmethod
    def opened(cls, level: int, rng: random.Random) -> tuple[Tables, Goal]:
        """The tables, and a wish for each level up to this one."""
        names = rng.sample(NAMES, 6)
        cities = rng.sample(CITIES, 3)
        pays = [str(pay) for pay in rng.sample(range(20, 80), len(names))]
        staff = {
            row: {"name": name, "city": rng.choice(cities), "pay": pay}
            for row, (name, pay) in enumerate(zip(names, pays, strict=True), 1)
        }
        bosses = rng.sample(names, len(TEAMS))
        teams = {
            row: {"team": team, "boss": boss} for row, (team, boss) in enumerate(zip(TEAMS, bosses, strict=True), 1)
        }
        tables: Tables = {"staff": staff, "teams": teams}
        goal, wishes, answer = copy.deepcopy(tables), [], None
        for kind in range(level + 1):
            row = rng.choice(list(staff))
            cells = goal["staff"]
            if kind == 0:
                city = rng.choice([city for city in CITIES if city != cells[row]["city"]])
                wishes.append(f"Set the city of row {row} in staff to {city}.")
                cells[row]["city"] = city
            elif kind == 1:
                pay = str(rng.randint(80, 99))
                wishes.append(f"Set the pay of {cells[row]['name']} to {pay}.")
                cells[row]["pay"] = pay
            elif kind == 2:
                city, more = cells[row]["city"], rng.randint(2, 9)
                wishes.append(f"Raise the pay of all in {city} by {more}.")
                for cell in cells.values():
                    if cell["city"] == city:
                        cell["pay"] = str(int(cell["pay"]) + more)
            else:
                team = rng.choice(list(goal["teams"].values()))
                wishes.append(f"What is the pay of the boss of {team['team']}? Say the number alone.")
                answer = next(cell["pay"] for cell in cells.values() if cell["name"] == team["boss"])
        return tables, Goal(" ".join(wishes), goal, answer)

    @property
    def tools(self) -> list[Tool]:
        """What the agent can do."""
        return [tool(self.find), tool(self.rows), tool(self.set)]

    def find(self, table: Table, column: str, value: str) -> str:
        """Rows with a value."""
        self._column(table, column)
        return shown({row: cells for row, cells in self.state[table].items() if cells[column] == value})

    def rows(self, table: Table) -> str:
        """All rows."""
        return shown(self.state[table])

    def set(self, table: Table, row: int, column: str, value: str) -> str:
        """Sets a cell."""
        self._column(table, column)
        if row not in self.state[table]:
            raise ToolError(f"no row {row} in {table}")
        self.state[table][row][column] = value
        return shown({row: self.state[table][row]})

    def _column(self, table: str, column: str) -> None:
        if column not in COLUMNS[table]:
            raise ToolError(f"no column {column!r} in {table}, only {', '.join(COLUMNS[table])}")


def shown(rows: dict[int, dict[str, str]]) -> str:
    """Rows as text, one after another."""
    return "; ".join(f"{row}: {', '.join(cells.values())}" for row, cells in rows.items()) or "no rows"


def told(text: str) -> dict[int, list[str]]:
    """What `shown` showed."""
    rows = [row.split(": ") for row in text.split("; ")] if text != "no rows" else []
    return {int(row): cells.split(", ") for row, cells in rows}


async def solve(asked: str, say: Say) -> str:
    """Grants the wishes one after another, each after the query that it needs."""
    answer = "Done."
    for wish in sentences(asked.replace("? Say the number alone.", "?")):
        if found := matched(r"Set the city of row (\d+) in staff to (\w+)", wish):
            await say("set it", call("set", table="staff", row=int(found[1]), column="city", value=found[2]))
        elif found := matched(r"Set the pay of (\w+) to (\d+)", wish):
            (text,) = await say("find the row", call("find", table="staff", column="name", value=found[1]))
            (row,) = told(text)
            await say(f"row {row}", call("set", table="staff", row=row, column="pay", value=found[2]))
        elif found := matched(r"Raise the pay of all in (\w+) by (\d+)", wish):
            (text,) = await say("find the rows", call("find", table="staff", column="city", value=found[1]))
            new = {row: (int(cells[2]), int(cells[2]) + int(found[2])) for row, cells in told(text).items()}
            why = ", ".join(f"{before} + {found[2]} = {after}" for before, after in new.values())
            changes = (
                call("set", table="staff", row=row, column="pay", value=str(after)) for row, (_, after) in new.items()
            )
            await say(why, *changes)
        elif found := matched(r"What is the pay of the boss of (\w+)\?", wish):
            (text,) = await say("find the boss", call("find", table="teams", column="team", value=found[1]))
            ((_, boss),) = told(text).values()
            (text,) = await say(f"it is {boss}", call("find", table="staff", column="name", value=boss))
            ((_, _, answer),) = told(text).values()
    return answer
