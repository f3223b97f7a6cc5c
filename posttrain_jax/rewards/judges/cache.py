"""What a judge elsewhere was asked and said, on the disk: a killed run does not ask, or pay, again."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path


class Answers:
    """Answers by the hash of their request, and how many calls were made; an answer put here survives a crash."""

    def __init__(self, path: Path | None):
        """Opens or makes the file; None keeps everything in memory."""
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        self._database.execute("CREATE TABLE IF NOT EXISTS calls (id INTEGER PRIMARY KEY CHECK (id = 0), made INTEGER)")
        self._database.execute("INSERT OR IGNORE INTO calls VALUES (0, 0)")

    def get(self, request: str) -> str | None:
        """The answer to a request, if there is one."""
        with self._lock:
            row = self._database.execute("SELECT answer FROM answers WHERE request = ?", (request,)).fetchone()
        return row[0] if row else None

    def put(self, request: str, answer: str) -> None:
        """Keeps an answer; on the disk when this returns."""
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (request, answer))

    def take(self, budget: int) -> bool:
        """Counts one more call, unless ``budget`` calls were made; 0 is no bound."""
        with self._lock:
            changed = self._database.execute("UPDATE calls SET made = made + 1 WHERE ? = 0 OR made < ?", (budget,) * 2)
        return changed.rowcount == 1

    @property
    def calls(self) -> int:
        """Calls made, those of earlier runs on this file included."""
        with self._lock:
            return self._database.execute("SELECT made FROM calls").fetchone()[0]

    def close(self) -> None:
        """Closes the file."""
        self._database.close()
