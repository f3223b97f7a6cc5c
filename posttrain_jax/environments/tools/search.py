"""Search over a corpus of one's own, with SQLite's full-text index: search, open a page, find on it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

from posttrain_jax.environments.tools.tool import Tool, ToolError, tool

LINES = 40  # of a page that are shown at once


class Page(NamedTuple):
    """A document of the corpus."""

    title: str
    text: str


class Corpus:
    """Pages, ranked by BM25 over title and text; read by any number of browsers."""

    def __init__(self, pages: Iterable[Page], path: str = ":memory:"):
        """Builds the index, in memory or in a new file at ``path``."""
        self._index = sqlite3.connect(path, check_same_thread=False)
        self._index.execute("CREATE VIRTUAL TABLE pages USING fts5(title, text, tokenize = 'porter unicode61')")
        self._index.executemany("INSERT INTO pages (title, text) VALUES (?, ?)", pages)
        self._index.commit()

    def search(self, query: str, most: int) -> list[tuple[int, str, str]]:
        """Number, title and an excerpt of the best pages; every word of the query may count, none has to."""
        words = re.findall(r"\w+", query)
        if not words:
            return []
        found = self._index.execute(
            "SELECT rowid, title, snippet(pages, 1, '', '', '…', 16) FROM pages WHERE pages MATCH ?"
            " ORDER BY bm25(pages, 3.0, 1.0), rowid LIMIT ?",
            (" OR ".join(f'"{word}"' for word in words), most),
        )
        return list(found)

    def page(self, number: int) -> Page:
        """A page by its number, counted from 1.

        Raises:
          ToolError: there is none.
        """
        found = self._index.execute("SELECT title, text FROM pages WHERE rowid = ?", (number,)).fetchone()
        if found is None:
            raise ToolError(f"no page {number}")
        return Page(*found)

    def close(self) -> None:
        self._index.close()


class Browser:
    """One agent's view of a corpus: what it found, and which page is open."""

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        self._open: Page | None = None

    @property
    def tools(self) -> list[Tool]:
        """``search``, ``open`` and ``find``."""
        return [tool(self.search), tool(self.open), tool(self.find)]

    def search(self, query: str, num: int = 10) -> str:
        """Searches the corpus.

        Args:
          query: words to look for
          num: how many results, at most 50
        """
        if not 1 <= num <= 50:
            raise ToolError(f"num is {num}; expected 1 to 50")
        found = self._corpus.search(query, num)
        return "\n".join(f"[{id}] {title}\n{excerpt}" for id, title, excerpt in found) or "nothing found"

    def open(self, id: int, line: int = 1) -> str:
        """Opens a page.

        Args:
          id: the number of the page, as search shows it
          line: the first line to show
        """
        self._open = self._corpus.page(id)
        lines = self._open.text.splitlines() or [""]
        if not 1 <= line <= len(lines):
            raise ToolError(f"line is {line}; the page has {len(lines)}")
        last = min(len(lines), line + LINES - 1)
        shown = "\n".join(lines[line - 1 : last])
        return f"{self._open.title}, lines {line} to {last} of {len(lines)}\n{shown}"

    def find(self, pattern: str) -> str:
        """Finds text on the open page, whatever its case.

        Args:
          pattern: the text, as it is
        """
        if self._open is None:
            raise ToolError("no page is open")
        wanted = pattern.casefold()
        found = [
            f"{number}: {line}"
            for number, line in enumerate(self._open.text.splitlines(), 1)
            if wanted in line.casefold()
        ]
        return "\n".join(found[:LINES]) or "nothing found"
