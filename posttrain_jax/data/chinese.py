"""Questions of `tasks` in Chinese, for tasks whose answers are the same in both languages."""

from __future__ import annotations

import re

from posttrain_jax.data.tasks import Problem

# what a generator asks, and the same in Chinese
WORDINGS: dict[str, tuple[str, str]] = {
    "chain_sum": (r"State the final answer to the following arithmetic problem: (.+ =)", r"计算：\1"),
    "basic_arithmetic": (r"Calculate (.+)\.", r"求 \1 的值。"),
    "products": (r"Solve the following multiplication: (.+?)\. .*", r"求乘积：\1。只写结果。"),
    "gcd": (r"Find the Greatest Common Divisor \(GCD\) of these numbers: (.+?)\. .*", r"求最大公约数：\1。只写结果。"),
    "count_bits": (
        r"How many 1 bits are there in the binary representation of the number (\d+)\?",
        r"\1 的二进制有几个 1？",
    ),
    "spell_backward": (r"Spell this word backward \(.*\): (\w+)", r"倒着拼写：\1"),
    "simple_equations": (
        r"(?:(?:Find|Determine) the value of|Solve for) (\w)(?: in the equation| that satisfies)?: (.+)",
        r"求 \1：\2",
    ),
    "aiw": (
        r"(\w+) has (\d+) (brothers|sisters) and she also has (\d+) (brothers|sisters)\."
        r" How many sisters does (\w+)'s brother have\?",
        r"\1有\2个\3和\4个\5。\6的兄弟有几个姐妹？",
    ),
}
WORDS = {"brothers": "兄弟", "sisters": "姐妹"}


def question(problem: Problem) -> str | None:
    """What a problem asks, in Chinese; None where there is no wording for it."""
    asked, said = WORDINGS.get(problem.task, ("", ""))
    found = re.fullmatch(asked, problem.question) if asked else None
    if found is None:
        return None
    text = found.expand(said)
    return re.sub("|".join(WORDS), lambda word: WORDS[word[0]], text) if problem.task == "aiw" else text
