"""Stored pages, searched, opened and read."""

import json

import pytest

from posttrain_jax.environments.tools import pages
from posttrain_jax.environments.tools.search import Browser, Corpus, Page
from posttrain_jax.errors import UserError


def test_a_folder_is_browsed(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "tea.html").write_text(
        "<title>Tea</title><style>p {}</style><script>var steal = 1</script><p>Green\ntea &amp; more</p>"
        "<p>Black tea</p>"
    )
    (tmp_path / "cup.md").write_text("# Cups\nof clay\n")
    (tmp_path / "photo.png").write_bytes(b"\x89")
    browser = Browser(Corpus(pages.read(str(tmp_path))))
    assert "[2] deep/tea.html" in browser.search("green")
    assert browser.open(2) == "deep/tea.html, lines 1 to 3 of 3\nTea\nGreen tea & more\nBlack tea"
    assert browser.find("BLACK") == "3: Black tea" and browser.search("steal") == "nothing found"


def test_a_file_of_lines_is_read_and_its_mistakes_told(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"title": "t", "text": "x"}) + "\n" + json.dumps({"title": "u"}))
    found = pages.read(str(tmp_path / "a.jsonl"))
    assert next(found) == Page("t", "x")
    with pytest.raises(UserError, match="a.jsonl line 2: no page, for 'text'"):
        next(found)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pages"):
        list(pages.read(str(tmp_path / "empty")))
