"""Stored pages for a `Corpus`: a folder of text, Markdown and HTML, or a JSONL file of titles and texts."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from posttrain_jax.data.files import Lines, decoded
from posttrain_jax.environments.tools.search import Page
from posttrain_jax.errors import UserError

TEXTS, MARKUP = (".txt", ".md"), (".html", ".htm")
BLOCKS = frozenset("p div br li tr h1 h2 h3 h4 h5 h6 section article pre table blockquote title".split())


def read(path: str) -> Iterator[Page]:
    """The pages, in the order of their names or lines; those of a folder are called by their paths in it.

    Raises:
      UserError: nothing there, or a line without ``title`` and ``text``.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        yield from _lines(Lines(path))
        return
    files = sorted(file for file in place.rglob("*") if file.suffix.lower() in (*TEXTS, *MARKUP))
    if not files:
        raise UserError(f"{path} holds no pages; expected files that end with {', '.join((*TEXTS, *MARKUP))}")
    for file in files:
        text = file.read_text(errors="replace")
        yield Page(str(file.relative_to(place)), visible(text) if file.suffix.lower() in MARKUP else text)


def _lines(lines: Lines) -> Iterator[Page]:
    for i in range(len(lines)):
        try:
            row = decoded(lines[i])
            title, text = row["title"], row["text"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{lines.where(i)}: no page, for {error}") from error
        if not isinstance(title, str) or not isinstance(text, str):
            raise UserError(f"{lines.where(i)}: title and text are text")
        yield Page(title, text)


def visible(markup: str) -> str:
    """What a reader of HTML sees, a line for each block."""
    parser = _Visible()
    parser.feed(markup)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


class _Visible(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in ("script", "style")
        self._block(tag)

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style") and self._hidden > 0
        self._block(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data.replace("\n", " "))

    def _block(self, tag: str) -> None:
        if tag in BLOCKS:
            self.parts.append("\n")
