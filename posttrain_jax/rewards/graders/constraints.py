"""Constraints on a text that a rule can check, each under the name that IFEval (arXiv 2311.07911) gives it.

A check takes the response and the constraint's arguments under IFEval's names, and says whether it is followed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from posttrain_jax.rewards.graders.language import language

RESPONSES = ("my answer is yes", "my answer is no", "my answer is maybe")
ABBREVIATIONS = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|[A-Z])\.|(?<=\d)\.(?=\d)")


def counted(count: int, relation: str | None, wanted: int) -> bool:
    """``count`` is "at least", "less than", or (no relation) exactly ``wanted``."""
    if relation is None:
        return count == wanted
    return count >= wanted if relation == "at least" else count < wanted


def occurrences(text: str, word: str) -> int:
    """How often a word or phrase stands in a text by itself, whatever its case."""
    edges = [r"(?<!\w)" if re.match(r"\w", word) else "", r"(?!\w)" if re.search(r"\w$", word) else ""]
    return len(re.findall(edges[0] + re.escape(word) + edges[1], text, re.I))


def words(text: str) -> list[str]:
    """Runs of letters and digits; a Chinese character is a word."""
    return re.findall(r"[一-鿿]|(?:(?![一-鿿])\w)+", text)


def sentences(text: str) -> int:
    """Sentences, by the marks that end them; what follows the last mark is one more."""
    parts = re.split(r"[.!?]+[\"'”’)\]]*(?:\s+|$)|[。！？]+|\n\s*\n", ABBREVIATIONS.sub("", text))
    return sum(bool(re.search(r"\w", part)) for part in parts)


def paragraphs(text: str, between: str) -> list[str]:
    """The parts of a text between separators, the first and the last of which may be empty.

    Raises:
      ValueError: an empty part in the middle.
    """
    parts = [part.strip() for part in re.split(between, text)]
    if not all(parts[1:-1]):
        raise ValueError("an empty paragraph")
    return [part for part in parts if part]


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    return len(paragraphs(text, r"\s?\*\*\*\s?")) == num_paragraphs


def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = paragraphs(text, r"\n\n")
    if len(parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    first = re.search(r"\w[\w'’-]*", parts[nth_paragraph - 1].split()[0])
    return bool(first) and first[0].casefold() == first_word.casefold()


def _json(text: str) -> bool:
    fenced = re.fullmatch(r"```(?:json|Json|JSON)?\s*\n(.*)\n\s*```", text.strip(), re.S)
    try:
        return isinstance(json.loads(fenced[1] if fenced else text), (dict, list))
    except (ValueError, RecursionError):
        return False


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    parts = re.split(rf"(?:^|(?<=\s)){re.escape(section_spliter.strip())}\s?\d+\s?", text)
    return len(parts) - 1 >= num_sections and all(re.search(r"\w", part) for part in parts[1:])


def _highlights(text: str, num_highlights: int) -> bool:
    bold = re.findall(r"\*\*([^*\n]+)\*\*", text)
    light = re.findall(r"\*([^*\n]+)\*", re.sub(r"\*\*[^*\n]+\*\*", " ", text))
    return sum(bool(part.strip()) for part in bold + light) >= num_highlights


def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*(?!\*)|-)(?=.*\w).*$", text, re.M)) == num_bullets


def _postscript(text: str, postscript_marker: str) -> bool:
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(postscript_marker, re.escape(postscript_marker))
    return bool(re.search(rf"^\s*{pattern}.*\w.*$", text, re.I | re.M))


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _repeat(text: str, prompt_to_repeat: str) -> bool:
    repeated = " ".join(prompt_to_repeat.split()).casefold()
    given = " ".join(text.split()).casefold()
    return given.startswith(repeated) and len(given) > len(repeated)


def _capitals(text: str, capital_relation: str, capital_frequency: int) -> bool:
    found = sum(word.isupper() for word in re.findall(r"[^\W\d_][\w'’-]*", text))
    return counted(found, capital_relation, capital_frequency)


def _letters(text: str, letter: str, let_relation: str, let_frequency: int) -> bool:
    return counted(text.casefold().count(letter.casefold()), let_relation, let_frequency)


def _english(text: str, change: Callable[[str], str]) -> bool:
    return text == change(text) and language(text, "en", least=0.95).correct


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": lambda text, keywords: all(occurrences(text, word) for word in keywords),
    "keywords:forbidden_words": lambda text, forbidden_words: not any(occurrences(text, w) for w in forbidden_words),
    "keywords:frequency": lambda text, keyword, relation, frequency: counted(
        occurrences(text, keyword), relation, frequency
    ),
    "keywords:letter_frequency": _letters,
    "language:response_language": lambda text, language_code: language(text, language_code, least=0.8).correct,
    "length_constraints:number_words": lambda text, relation, num_words: counted(len(words(text)), relation, num_words),
    "length_constraints:number_sentences": lambda text, relation, num_sentences: counted(
        sentences(text), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        len(re.findall(r"\[[^\[\]\n]*\w[^\[\]\n]*\]", text)) >= num_placeholders
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text: sum(text.casefold().count(r) for r in RESPONSES) == 1,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda text: bool(re.search(r"<<[^<>\n]*\w[^<>\n]*>>", text)),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat,
    "startend:end_checker": lambda text, end_phrase: (
        text.strip().strip('"').casefold().endswith(end_phrase.strip().casefold())
    ),
    "startend:quotation": lambda text: len(text.strip()) > 2 and text.strip()[0] == '"' == text.strip()[-1],
    "change_case:capital_word_frequency": _capitals,
    "change_case:english_capital": lambda text: _english(text, str.upper),
    "change_case:english_lowercase": lambda text: _english(text, str.lower),
    "punctuation:no_comma": lambda text: not re.search("[,，、]", text),
}
RENAMED = {"language:response_language": {"language": "language_code"}}


def followed(name: str, text: str, arguments: dict[str, Any]) -> bool:
    """Whether a text follows the constraint of that name."""
    renamed = RENAMED.get(name, {})
    try:
        return CHECKS[name](text, **{renamed.get(key, key): value for key, value in arguments.items()})
    except ValueError:
        return False
