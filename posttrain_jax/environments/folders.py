"""A tree of folders, in which files are found by name, kind or content, and moved, renamed or deleted."""

from __future__ import annotations

import random
import re

from posttrain_jax.environments.expert import Say, call, matched, sentences
from posttrain_jax.environments.stateful import Goal, Stateful
from posttrain_jax.environments.tools import Tool, ToolError, tool

FOLDERS: tuple[str, ...] = ("docs", "pics", "work", "work/tax", "home", "home/fun", "old", "tmp")
STEMS = ("plan", "note", "bill", "song", "mail", "test", "idea", "team", "menu", "code", "poem", "deal")
KINDS = ("txt", "csv", "md", "png")
WORDS = ("red", "blue", "green", "pink", "gray", "gold")
Tree = dict[str, str]  # what a file says, by its path


class Folders(Stateful):
    """Level 0 moves a file; each level above adds a wish:

    1. rename the only file of a kind, which a list shows,
    2. move a file that is somewhere,
    3. delete the file that says something.
    """

    name = "files"
    highest = 3

    @classmethod
    def opened(cls, level: int, rng: random.Random) -> tuple[tuple[list[str], Tree], Goal]:
        """The folders and files, and a wish for each level up to this one, about a file of its own."""
        folders = sorted(rng.sample(FOLDERS, 5))
        sources, targets = folders[:3], folders[3:]
        rng.shuffle(sources)
        stems = rng.sample(STEMS, len(STEMS))
        tree: Tree = {}
        for folder in sources:
            words = rng.sample(WORDS, 3)
            for kind, word in zip(rng.sample(KINDS, 3), words, strict=True):
                tree[f"{folder}/{stems.pop()}.{kind}"] = word
        free, end, wishes = list(tree), dict(tree), []
        rng.shuffle(free)
        for kind in range(level + 1):
            path, target = free.pop(), rng.choice(targets)
            folder, file = path.rsplit("/", 1)
            word = end.pop(path)
            if kind == 0:
                wishes.append(f"Move {path} to {target}.")
                end[f"{target}/{file}"] = word
            elif kind == 1:
                ending = file.split(".")[1]
                new = f"{stems.pop()}.{ending}"
                wishes.append(f"Rename the only {ending} file in {folder} to {new}.")
                end[f"{folder}/{new}"] = word
            elif kind == 2:
                wishes.append(f"Find {file} and move it to {target}.")
                end[f"{target}/{file}"] = word
            else:
                wishes.append(f"Delete the file in {folder} that says {word}.")
        return (folders, tree), Goal(" ".join(wishes), (list(folders), end))

    @property
    def tools(self) -> list[Tool]:
        """What the agent can do."""
        named = (self.files, self.read, self.move, self.rename, self.delete)
        return [tool(function) for function in named]

    def files(self, folder: str) -> str:
        """Files of a folder, or folders of /."""
        if folder == "/":
            return ", ".join(self.state[0])
        self._folder(folder)
        return ", ".join(path.rsplit("/", 1)[1] for path in self.state[1] if path.rsplit("/", 1)[0] == folder) or "none"

    def read(self, path: str) -> str:
        """What a file says."""
        return self._file(path)

    def move(self, path: str, folder: str) -> str:
        """Moves a file."""
        self._folder(folder)
        return self._renamed(path, f"{folder}/{path.rsplit('/', 1)[-1]}")

    def rename(self, path: str, name: str) -> str:
        """Gives a file a name."""
        if "/" in name or not name:
            raise ToolError(f"{name!r} is no file name")
        return self._renamed(path, f"{path.rsplit('/', 1)[0]}/{name}")

    def delete(self, path: str) -> str:
        """Deletes a file."""
        self._file(path)
        del self.state[1][path]
        return f"deleted {path}"

    def _renamed(self, path: str, new: str) -> str:
        word = self._file(path)
        if new in self.state[1]:
            raise ToolError(f"{new} exists")
        del self.state[1][path]
        self.state[1][new] = word
        return f"now {new}"

    def _file(self, path: str) -> str:
        if path not in self.state[1]:
            raise ToolError(f"no file {path}")
        return self.state[1][path]

    def _folder(self, folder: str) -> None:
        if folder not in self.state[0]:
            raise ToolError(f"no folder {folder}")


async def solve(asked: str, say: Say) -> str:
    """Grants the wishes one after another, each after a look at what it needs."""
    for wish in sentences(asked):
        if found := matched(r"Move (\S+) to (\S+)", wish):
            await say("move it", call("move", path=found[1], folder=found[2]))
        elif found := matched(r"Rename the only (\w+) file in (\S+) to (\S+)", wish):
            ending, folder, new = found.groups()
            (files,) = await say("list first", call("files", folder=folder))
            file = next(file for file in files.split(", ") if file.endswith(f".{ending}"))
            await say(f"it is {file}", call("rename", path=f"{folder}/{file}", name=new))
        elif found := matched(r"Find (\S+) and move it to (\S+)", wish):
            (folders,) = await say("which folders", call("files", folder="/"))
            places = folders.split(", ")
            listed = await say("list all", *(call("files", folder=folder) for folder in places))
            folder = next(place for place, files in zip(places, listed, strict=True) if found[1] in files.split(", "))
            await say(f"it is in {folder}", call("move", path=f"{folder}/{found[1]}", folder=found[2]))
        elif found := matched(r"Delete the file in (\S+) that says (\w+)", wish):
            folder, word = found.groups()
            (files,) = await say("list first", call("files", folder=folder))
            paths = [f"{folder}/{file}" for file in re.split(", ", files)]
            told = await say("read all", *(call("read", path=path) for path in paths))
            path = paths[told.index(word)]
            await say(f"{path} says {word}", call("delete", path=path))
    return "Done."
