"""Tools: what is declared, what is refused and how that is told, and what each does."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Literal

import pytest

from posttrain_jax.chat.messages import Call
from posttrain_jax.environments.tools import Toolbox, ToolError, tool
from posttrain_jax.environments.tools.calculator import calculate
from posttrain_jax.environments.tools.runner import Outcome
from posttrain_jax.environments.tools.search import Browser, Corpus, Page
from posttrain_jax.environments.tools.workspace import Workspace


def book(city: str, nights: int, rooms: list[int] | None = None, view: Literal["sea", "yard"] = "sea") -> dict:
    """Books a room.

    It is not refunded.

    Args:
      city: where,
        in one word
      nights: how long
    """
    if nights > 30:
        raise ToolError("too long")
    if nights == 0:
        raise ZeroDivisionError("no night")
    return {"city": city, "nights": nights, "rooms": rooms, "view": view}


def test_declared_from_the_function():
    assert tool(book).declaration == {
        "type": "function",
        "function": {
            "name": "book",
            "description": "Books a room. It is not refunded.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where, in one word"},
                    "nights": {"type": "integer", "description": "how long"},
                    "rooms": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
                    "view": {"enum": ["sea", "yard"]},
                },
                "required": ["city", "nights"],
            },
        },
    }
    with pytest.raises(TypeError, match="parameter 'x'.*complex"):
        tool(complicated)


def complicated(x: complex) -> None:
    """Not for JSON."""


GOOD = {"city": "Rom", "nights": 2}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (GOOD, '{"city": "Rom", "nights": 2, "rooms": null, "view": "sea"}'),
        (GOOD | {"rooms": [1, 2]}, '{"city": "Rom", "nights": 2, "rooms": [1, 2], "view": "sea"}'),
        ({"city": "Rom"}, "error: argument 'nights' is missing"),
        (GOOD | {"nights": "two"}, "error: nights is 'two'; expected integer"),
        (GOOD | {"nights": True}, "error: nights is True; expected integer"),
        (GOOD | {"night": 2}, "error: argument 'night' is unknown; did you mean 'nights'?"),
        (GOOD | {"zzz": 2}, "error: argument 'zzz' is unknown; there are: city, nights, rooms, view"),
        (GOOD | {"rooms": [1, "2"]}, "error: rooms[1] is '2'; expected integer"),
        (GOOD | {"view": "lake"}, "error: view is 'lake'; expected one of 'sea', 'yard'"),
        (GOOD | {"nights": 31}, "error: too long"),
        (GOOD | {"nights": 0}, "error: ZeroDivisionError: no night"),
        ('{"city": "Rom", "nights": 0', "error: message 0: arguments of 'book' are not JSON"),
    ],
)
def test_a_call_and_what_is_wrong_with_it(arguments, told):
    assert asyncio.run(Toolbox([tool(book)]).call(Call("book", arguments, None))).startswith(told)


def test_slow_and_talkative_and_unknown_tools():
    async def wait() -> str:
        """Waits."""
        await asyncio.sleep(60)
        return "late"

    def talk() -> str:
        """Talks."""
        return "a" * 50 + "b" * 50

    box = Toolbox([tool(wait), tool(talk)], seconds=0.01, longest=10)
    assert asyncio.run(box.call(Call("wait", {}, None))) == "error: wait took longer than 0.01 s"
    assert asyncio.run(box.call(Call("talk", {}, None))) == "aaaaa\n[90 characters left out]\nbbbbb"
    calls = [{"id": "7", "function": {"name": "walk", "arguments": {}}}, {"function": {"name": "zz", "arguments": {}}}]
    told = asyncio.run(Toolbox([tool(talk)]).results({"role": "assistant", "tool_calls": calls}))
    assert told == [
        {"role": "tool", "content": "error: no tool 'walk'; did you mean 'talk'?", "tool_call_id": "7"},
        {"role": "tool", "content": "error: no tool 'zz'; there are: talk"},
    ]
    with pytest.raises(ValueError, match="two tools of one name"):
        Toolbox([tool(talk), tool(talk)])


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 * (3 + 4)", "14"),
        ("-7 // 2", "-4"),
        ("10 / 4", "2.5"),
        ("6 / 3", "2"),
        ("2 ** 100", str(2**100)),
        ("gcd(12, 18)", "6"),
    ],
)
def test_calculator(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("1 / 0", "division by zero"),
        ("9 ** 9 ** 9", "too large"),
        ("(-8) ** 0.5", "not real"),
        ("__import__('os')", "no function '__import__'"),
        ("(1).real", "not arithmetic"),
        ("'a' * 9", "not arithmetic"),
        ("True + 1", "not arithmetic"),
        ("2 +", "not an expression"),
        ("(" * 500, "not an expression"),
        ("1e308 * 10 // 1", "not finite"),
        ("*".join(["9" * 1000] * 5), "too large"),
    ],
)
def test_calculator_refuses(expression, told):
    with pytest.raises(ToolError, match=told):
        print(calculate(expression))


def test_search_open_find():
    lines = "\n".join(f"line {number}" for number in range(1, 100))
    corpus = Corpus(
        [Page("Rivers", "The Rhine flows north.\nThe Danube flows east."), Page("Long", lines), Page("East", "a wind")]
    )
    browser = Browser(corpus)
    assert browser.search("east?", 1).startswith("[3] East")  # a word in a title counts more
    assert browser.search("danubes", 1) == "[1] Rivers\nThe Rhine flows north.\nThe Danube flows east."
    assert browser.search('" OR rivers:* -- (').startswith("[1] Rivers") and browser.search("?!") == "nothing found"
    with pytest.raises(ToolError, match="no page is open"):
        browser.find("x")
    assert browser.open(2, 98) == "Long, lines 98 to 99 of 99\nline 98\nline 99"
    assert browser.open(2).startswith("Long, lines 1 to 40 of 99\nline 1\n")
    assert browser.find("LINE 9") == "\n".join(f"{n}: line {n}" for n in (9, *range(90, 100)))
    for wrong, told in ((lambda: browser.open(9), "no page 9"), (lambda: browser.open(1, 3), "the page has 2")):
        with pytest.raises(ToolError, match=told):
            wrong()
    corpus.close()


def test_editor():
    space = Workspace({"a/b.txt": "one\ntwo\n"})
    assert [each.name for each in space.tools] == ["view", "create", "replace", "insert"]
    space.create("./a/../c.txt", "x")
    assert space.view() == "a/b.txt\nc.txt" and space.view("a") == "a/b.txt"
    space.insert("a/b.txt", 1, "new")
    space.insert("c.txt", 1, "y\n")
    space.replace("a/b.txt", "two", "2")
    assert space.files == {"a/b.txt": "one\nnew\n2\n", "c.txt": "x\ny\n"}
    assert space.view("a/b.txt", 2, 3) == "2\tnew\n3\t2"
    for wrong, told in (
        (lambda: space.view("../etc"), "outside"),
        (lambda: space.create("/etc/x", ""), "outside"),
        (lambda: space.create("a", ""), "is a folder"),
        (lambda: space.create("c.txt/d", ""), "'c.txt' is one"),
        (lambda: space.replace("a/b.txt", "n", ""), "occurs 2 times"),
        (lambda: space.replace("a/b.txt", "zz", ""), "occurs 0 times"),
        (lambda: space.insert("c.txt", 3, ""), "expected 0 to 2"),
        (lambda: space.view("c.txt", 0), "not within 1 to 2"),
        (lambda: space.insert("d.txt", 0, ""), "no file 'd.txt'"),
    ):
        with pytest.raises(ToolError, match=told):
            wrong()


class LocalRunner:
    """Runs the test's own, harmless commands in a temporary folder."""

    def __init__(self, folder):
        self.folder = folder

    async def run(self, command, files, seconds):
        for path, text in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text)
        program = [sys.executable if command[0] == "python3" else command[0], *command[1:]]
        try:
            done = subprocess.run(program, cwd=self.folder, capture_output=True, text=True, timeout=seconds)
            output, status = done.stdout + done.stderr, done.returncode
        except subprocess.TimeoutExpired:
            output, status = "", None
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        return Outcome(output, status, {str(path.relative_to(self.folder)): path.read_text() for path in found})


def test_programs_share_the_files(tmp_path):
    space = Workspace({"n.txt": "20\n"}, LocalRunner(tmp_path), seconds=20.0)
    box = Toolbox(space.tools)

    def told(name, **arguments):
        return asyncio.run(box.call(Call(name, arguments, None)))

    assert told("python", code="n = int(open('n.txt').read())\nopen('m.txt', 'w').write(str(n + 1))\nprint(n)") == "20"
    assert told("view", path="m.txt") == "1\t21"
    assert told("shell", command="cat m.txt; exit 3") == "21\n[exit status 3]"
    assert told("shell", command="true") == "[no output]"
    assert "ZeroDivisionError" in told("python", code="1 / 0")
    slow = Workspace({}, LocalRunner(tmp_path), seconds=0.2)
    assert asyncio.run(slow.shell("sleep 20")) == "[ended after 0.2 s]"
