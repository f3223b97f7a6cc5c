"""The language of a response, told by its scripts and commonest words."""

from __future__ import annotations

import collections
import re
import unicodedata

from posttrain_jax.errors import UserError
from posttrain_jax.rewards.graders.languages import COMMON, SCRIPTS
from posttrain_jax.rewards.verdict import Verdict, judged, wrong

# code, formulas and addresses are in no language
ASIDE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|https?://\S+|\\[a-zA-Z]+", re.S)
MOST = 0.5  # share of a text that may be code, formulas and addresses


def shares(text: str) -> dict[str, float]:
    """The share of each script among a text's letters: ``{"CJK": 0.8, "LATIN": 0.2}``."""
    counts: collections.Counter[str] = collections.Counter()
    for letter, count in collections.Counter(filter(str.isalpha, text)).items():
        counts[unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]] += count
    total = sum(counts.values())
    return {script: count / total for script, count in counts.most_common()}


def language(text: str, expected: str, *, least: float = 0.9) -> Verdict:
    """Right if ``least`` of the letters, code and formulas left aside, are of the language's script and, where several
    languages share a script, the language's commonest words are more frequent than those of any other.

    Chinese leaves out what is mostly code: a word of Latin letters counts as much as one Chinese character.

    Raises:
      UserError: a language that is not in `languages.SCRIPTS`.
    """
    if expected not in SCRIPTS:
        raise UserError(f"language {expected!r} is unknown; there are {', '.join(sorted(SCRIPTS))}")
    prose = ASIDE.sub(" ", text)
    if (
        not any(map(str.isalpha, prose))
        or len(prose.split()) < MOST * len(text.split())
        and len(prose) < MOST * len(text)
    ):
        return wrong("no prose", text[:200])
    if expected in ("zh", "ja"):
        prose = re.sub(r"[A-Za-zÀ-ɏ]+", lambda word: word[0][0], prose)
    found = shares(prose)
    share = sum(found.get(script, 0.0) for script in SCRIPTS[expected])
    if share < least:
        return wrong(f"{share:.0%} of the letters are of the script", text[:200])
    if expected == "ja" and not found.keys() & {"HIRAGANA", "KATAKANA"}:
        return wrong("no kana", text[:200])
    rivals = [code for code, scripts in SCRIPTS.items() if scripts == SCRIPTS[expected]]
    if len(rivals) == 1:
        return judged(True, "", text[:200])
    words = collections.Counter(re.findall(r"[^\W\d_][^\s\d_.,;:!?()\"।،؟]*", prose.casefold()))
    counts = {code: sum(words[word] for word in COMMON[code]) for code in rivals}
    best = max(counts, key=counts.__getitem__)
    return judged(counts[expected] == counts[best] > 0, f"reads like {best}", text[:200])
