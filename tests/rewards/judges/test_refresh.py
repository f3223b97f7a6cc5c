"""The verifier's knowledge held against the critic, and made into its next lesson."""

import asyncio

import pytest
from opinions import Scripted, by_number

from posttrain_jax import chat as chats
from posttrain_jax.rewards.judges.judge import Comparison
from posttrain_jax.rewards.judges.refresh import agreement, conversation, lessons
from posttrain_jax.rewards.judges.rubrics import CORE, compare_messages, read_comparison
from posttrain_jax.rewards.judges.self_critique import Outcome, outcome, rank


def test_agreement_is_over_pairs_of_right_and_wrong():
    outcomes = {(0, 1): Outcome(1.0), (0, 2): Outcome(0.0), (1, 2): Outcome(0.5), (1, 3): Outcome(None, failed="x")}
    assert agreement(outcomes, [True, False, False, True]) == (1.0, 2)
    assert agreement(outcomes, [False, True, True, True]) == (1.0, 2)
    assert agreement(outcomes, [True] * 4) == (0, 0)


@pytest.mark.parametrize("sign, share", [(1, 1.0), (-1, 0.0), (0, 0.5)])
def test_a_critic_that_knows_agrees(sign, share):
    answers, correct = ["1", "2", "3"], [False, False, True]
    found = asyncio.run(rank(Scripted(lambda a, b: sign * by_number(a, b)), "?", answers, CORE, seed=0))
    agreed, comparable = agreement(found, correct)
    assert (agreed / comparable, comparable) == (share, 2)


def test_lessons_show_both_orders_and_the_verdict():
    found = lessons("2 + 2", ["4", "5", "4"], [True, False, True], CORE, most=9, seed=0)
    assert [lesson.verdict for lesson in found] == [1, -1]
    straight, swapped = (conversation(lesson)["messages"] for lesson in found)
    assert straight[:2] == compare_messages("2 + 2", "4", "5", CORE)
    assert swapped[:2] == compare_messages("2 + 2", "5", "4", CORE)
    verdicts = [Comparison(read_comparison(messages[-1]["content"])) for messages in (straight, swapped)]
    assert outcome(*verdicts) == Outcome(1.0, consistent=True)
    assert straight[-1]["role"] == "assistant"


def test_as_many_pairs_as_wanted_are_drawn():
    answers, correct = [str(n) for n in range(6)], [n < 3 for n in range(6)]
    whole = lessons("?", answers, correct, CORE, most=99, seed=0)
    some = lessons("?", answers, correct, CORE, most=4, seed=0)
    assert (len(whole), len(some)) == (18, 8)
    assert all(lesson in whole for lesson in some)
    assert some == lessons("?", answers, correct, CORE, most=4, seed=0)
    assert some != lessons("?", answers, correct, CORE, most=4, seed=1)
    assert lessons("?", answers, [True] * 6, CORE, most=4, seed=0) == []


@pytest.mark.parametrize("family", sorted(chats.FORMATS))
def test_every_family_can_be_taught_one(family):
    chat = chats.for_family(family)
    (lesson, _) = lessons("2 + 2", ["4", "5"], [True, False], CORE, most=1, seed=0)
    tokens, mask = chat.encode(conversation(lesson)["messages"])
    taught = chat.tokenizer.decode([t for t, m in zip(tokens, mask, strict=True) if m])
    assert read_comparison(chat.parse(taught)["content"]) == 1
    assert "Compare" not in taught
