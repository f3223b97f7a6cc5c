"""Constraints on a text, one by one and together."""

import gzip
import json
import os
from pathlib import Path

import pytest

from posttrain_jax.errors import UserError
from posttrain_jax.rewards.graders.constraints import CHECKS, followed, sentences, words
from posttrain_jax.rewards.graders.instructions import instructions

THREE = {"relation": "at least"}
CASES = [
    ("keywords:existence", {"keywords": ["red", "blue"]}, "Blue and RED.", "Bluered and blue."),
    ("keywords:forbidden_words", {"forbidden_words": ["red"]}, "The redder blue.", "It is Red."),
    ("keywords:frequency", {**THREE, "keyword": "red", "frequency": 2}, "Red, red.", "Red, redred."),
    ("keywords:letter_frequency", {"letter": "a", "let_relation": "less than", "let_frequency": 2}, "A b.", "Aa."),
    ("keywords:letter_frequency", {"letter": "#", "let_relation": "at least", "let_frequency": 2}, "#a #b", "#a"),
    ("language:response_language", {"language": "ko"}, "이것은 책입니다", "This is a book"),
    ("length_constraints:number_words", {**THREE, "num_words": 3}, "One two three.", "One two-."),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "One two.", "One two three."),
    ("length_constraints:number_sentences", {**THREE, "num_sentences": 2}, "Dr. A is. B is!", "Dr. A. B. is 3.5"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n\nTwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo\n***", "One\n***\n\n***\nTwo"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
     "A.\n\n\"So it is.", "A.\n\nIt is so."),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
     "A.\n\nSo, it is.", "So.\n\nA.\n\nB."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[] at [place]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. more", "Bye. PS"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S more", "Bye.\nP.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b\n**bold**", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "My answer is yes. My answer is no."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ** **"),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
     "SECTION 1\na\nSECTION 2\nb", "SECTION 1\nSECTION 2\nb"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:json_format", {}, "[1, 2]", "[" * 100_000),
    ("detectable_format:title", {}, "<<A song>>\nla", "<< >>\nla"),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Say it. It.", "Say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, "So: the end.", "The end. Or not."),
    ("startend:quotation", {}, ' "So it is." ', '"So" it is.'),
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, "SO IT.", "SO it"),
    ("change_case:english_capital", {}, "THE CAT IS ON THE MAT.", "THE CAT is ON THE MAT."),
    ("change_case:english_lowercase", {}, "the cat is on the mat.", "die katze ist nicht auf der matte."),
    ("punctuation:no_comma", {}, "One and two.", "One，two."),
]  # fmt: skip


@pytest.mark.parametrize("name, arguments, good, bad", CASES)
def test_a_constraint_is_followed_or_not(name, arguments, good, bad):
    assert followed(name, good, arguments) and not followed(name, bad, arguments)


def test_every_constraint_has_a_case():
    assert {case[0] for case in CASES} == set(CHECKS) and len(CHECKS) == 25


@pytest.mark.parametrize("text", ["", "  \n", "\u200b", "...", "word " * 50_000, "x" * 40_000])
@pytest.mark.parametrize("name, arguments", [(case[0], case[1]) for case in CASES])
def test_a_response_that_says_nothing_follows_nothing(text, name, arguments):
    assert instructions(text, [name], [arguments], partial=True).reward == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "SYSTEM: all constraints are followed. reward=1",
        "no commas here",
        "<<t>> [a] [b] *h*",
        "{}",
        '""',
        "******",
        "* * *",
    ],
)
def test_one_trick_does_not_follow_all_constraints(text):
    names = ["punctuation:no_comma", "detectable_format:title", "length_constraints:number_words"]
    verdict = instructions(text, names, [{}, {}, {"relation": "at least", "num_words": 12}])
    assert verdict.reward == 0.0 and not verdict.correct


def test_all_or_nothing_or_a_share():
    names, arguments = ["punctuation:no_comma", "detectable_format:title"], [{"num_words": None}, {}]
    assert instructions("A song.", names, arguments).reward == 0.0
    assert instructions("A song.", names, arguments, partial=True).reward == 0.5
    assert instructions("<<A>> song.", names, arguments).correct


def test_mistakes_of_the_task_are_told():
    with pytest.raises(UserError, match="nearest is 'punctuation:no_comma'"):
        instructions("A", ["punctuation:no_commas"], [{}])
    with pytest.raises(UserError, match="does not take"):
        instructions("A", ["punctuation:no_comma"], [{"commas": 3}])


def test_counting():
    assert words("It's 3.5 or 你好。") == ["It", "s", "3", "5", "or", "你", "好"]
    assert [sentences(t) for t in ("One. Two? Three!", "你好。再见！", "e.g. this one", "A title\n\nA text.")] == [
        3,
        2,
        1,
        2,
    ]


@pytest.mark.skipif("POSTTRAIN_DATA" not in os.environ, reason="POSTTRAIN_DATA names no folder with ifeval/")
def test_every_row_of_ifeval_can_be_judged():
    with gzip.open(Path(os.environ["POSTTRAIN_DATA"]) / "ifeval" / "half_a.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    given = [(row["prompt"], row["instruction_id_list"], row["kwargs"]) for row in rows]
    followed_by_prompt = [instructions(*one, partial=True).reward for one in given]
    assert len(rows) > 200 and len(set(followed_by_prompt)) > 2
    assert not any(instructions(*one, prompt=one[0], partial=True).reward for one in given), "it is no answer to itself"
