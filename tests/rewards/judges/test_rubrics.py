"""What a judge is asked, and how strictly its verdict is read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain_jax.rewards.judges.rubrics import (
    GENERAL,
    VERDICTS,
    compare_messages,
    grade_messages,
    read_comparison,
    read_grade,
    task_rubrics,
    verdict_line,
)

TEXTS = st.text(alphabet=st.sampled_from("aA`\n :Verdict3tie"), max_size=40)


@pytest.mark.parametrize("word, verdict", VERDICTS.items())
def test_a_verdict_at_the_end_is_read(word, verdict):
    assert read_comparison(f"A is clear, B is not.\n\nVerdict: {word}\n") == verdict
    assert read_comparison(verdict_line(verdict)) == verdict


@pytest.mark.parametrize("grade", range(1, 6))
def test_a_grade_at_the_end_is_read(grade):
    assert read_grade(f"Small faults.\nVerdict: {grade}") == grade


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "Verdict: C",
        "Verdict: a",
        "Verdict:A",
        "**Verdict: A**",
        "Verdict: A.",
        "Verdict: A, since it is short",
        "Verdict: A\nVerdict: A",
        "Verdict: A\nVerdict: B",
        "verdict: B\nVerdict: A",
        "Verdict: A\nor maybe not",
        "I say Verdict: A",
    ],
)
def test_anything_else_is_no_verdict(text):
    assert read_comparison(text) is None
    assert read_grade(text.replace("A", "3").replace("B", "4")) is None


@pytest.mark.parametrize("text", ["Verdict: 0", "Verdict: 6", "Verdict: 3.5", "Verdict: 33", "Verdict: five"])
def test_a_grade_out_of_range_is_none(text):
    assert read_grade(text) is None


@given(TEXTS, TEXTS)
def test_whatever_the_text_a_verdict_is_one_whole_last_line(before, after):
    text = f"{before}\nVerdict: B{after}"
    signs = [line for line in text.splitlines() if re.match(r"\s*verdict\b", line, re.IGNORECASE)]
    lines = text.strip().splitlines()
    sound = len(signs) == 1 and lines[-1].strip() == "Verdict: B"
    assert (read_comparison(text) == -1) == sound
    assert sound or read_comparison(text) in (None, 0, 1)


@given(TEXTS, TEXTS, TEXTS)
def test_no_answer_can_leave_its_fence(question, a, b):
    _, user = compare_messages(question, a, b, GENERAL)
    fence = re.match("Question:\n(`+)\n", user["content"]).group(1)
    assert all(fence not in text for text in (question, a, b))
    assert user["content"].split(fence)[1::2] == [f"\n{text}\n" for text in (question, a, b)]


def test_the_rubrics_are_told_and_the_mandatory_ones_named():
    system, user = compare_messages("Why?", "so", "thus", GENERAL + task_rubrics(["names a source"]))
    for rubric in GENERAL:
        assert f"{'(must) ' if rubric.mandatory else ''}{rubric.name}: {rubric.text}" in system["content"]
    assert "(must) task: names a source" in system["content"]
    assert [user["content"].index(part) for part in ("Why?", "so", "thus")] == sorted(
        user["content"].index(part) for part in ("Why?", "so", "thus")
    )
    assert "good answer:" not in compare_messages("Why?", "so", "thus", ())[0]["content"]


def test_a_grade_is_asked_beside_the_reference():
    _, user = grade_messages("2 + 2", "five", "four")
    assert re.findall("```\n(.*)\n```", user["content"]) == ["2 + 2", "four", "five"]
