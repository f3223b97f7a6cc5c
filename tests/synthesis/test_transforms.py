"""What is done with records that are there: pairs, near-duplicates, evaluation data, difficulty, other words."""

from __future__ import annotations

import asyncio
import random

import pytest

from posttrain_jax.data.records import Record
from posttrain_jax.synthesis import difficulty, near_duplicates, pairs, rephrasing

ASKS = [{"role": "system", "content": "You run a bank."}, {"role": "user", "content": "Send 5 from Ann to Bob."}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "send", "arguments": {"n": 5}}}]}
DONE = {"role": "assistant", "content": "Done."}
TOOL = {"role": "tool", "content": "ok"}


def record(*messages, reward=1.0, **more):
    return Record([*ASKS, *messages], reward=reward, stage="agentic", **more)


def test_a_pair_begins_with_what_both_attempts_share():
    pair = pairs.preference(record(CALL, TOOL, DONE), record(DONE, reward=0.0))
    assert (pair.messages, pair.chosen, pair.rejected) == (ASKS, [CALL, TOOL, DONE], [DONE])
    assert pair.stage == "pref" and pair.reward is None
    other = {**DONE, "content": "Sorry."}
    later = pairs.preference(record(CALL, TOOL, DONE), record(CALL, TOOL, other, reward=0.0))
    assert later.messages == [*ASKS, CALL, TOOL] and later.rejected == [other]


def test_attempts_that_are_no_pair_are_refused():
    good = record(CALL, TOOL, DONE)
    for bad, why in (
        (record(DONE, reward=1.0), "expected the first to be higher"),
        (record(DONE, reward=0.0, tools=[{"name": "f"}]), "not at the same task"),
        (record(CALL, reward=0.0), "do not part at an answer"),
        (record(CALL, {**TOOL, "content": "error"}, reward=0.0), "do not part at an answer"),
    ):
        with pytest.raises(ValueError, match=why):
            pairs.preference(good, bad)


def test_what_is_forbidden_is_refused():
    pair = pairs.refusal(record(CALL, TOOL, DONE), 1)
    assert pair.messages[0]["content"] == f"You run a bank. {pairs.ONLY_LOOK}" and pair.messages[1:] == ASKS[1:]
    assert pair.chosen == [{"role": "assistant", "content": pairs.REFUSALS[1]}]
    assert pair.rejected == [CALL, TOOL, DONE]
    with pytest.raises(ValueError, match="without an answer"):
        pairs.refusal(record())
    declined = pairs.decline("Do harm.", 5)
    assert declined.chosen[0]["content"] in pairs.DECLINES and declined.rejected[0]["content"] == pairs.COMPLIES


def text(seed, count=120):
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(count)]


def test_near_duplicates_go_and_others_stay():
    own = [text(seed) for seed in range(60)]
    copies = [[*words[:-1], "other"] for words in own[:20]]
    texts = [" ".join(words) for words in (*own, *copies)]
    assert near_duplicates.unique(texts) == list(range(60))
    assert near_duplicates.unique([texts[0], texts[0].upper(), "", "!"]) == [0, 2]


def test_equal_entries_estimate_the_jaccard_similarity():
    one, other = text(1, 200), text(2, 200)
    for shared in (0, 50, 100, 200):
        a, b = " ".join(one), " ".join([*one[:shared], *other[shared:]])
        grams = [near_duplicates.grams(each, 5) for each in (a, b)]
        true = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        signatures = [near_duplicates.signature(each, hashes=1024) for each in (a, b)]
        assert (signatures[0] == signatures[1]).mean() == pytest.approx(true, abs=0.06)


def test_texts_that_share_a_run_of_words_with_the_evaluation_go():
    held = " ".join(text(0))
    run = " ".join(text(0)[40:53])
    part = " ".join(text(0)[40:52])
    texts = [f"so: {run}.", part, "What is 2 + 2?", "and what is 2 + 2, then", "小明有三个苹果和两个梨"]
    assert near_duplicates.clean(texts, [held]) == [1, 2, 3, 4]
    assert near_duplicates.clean(texts, ["what is 2 2", ""]) == [0, 1, 4]
    assert near_duplicates.clean(texts, ["三个苹果"]) == [0, 1, 2, 3]


def test_pass_at_k():
    assert difficulty.pass_at(1, 4, 1) == 0.25
    assert difficulty.pass_at(2, 4, 1) == 0.5
    assert difficulty.pass_at(2, 4, 3) == 1.0
    assert difficulty.pass_at(2, 4, 0) == 0.0
    for bad in ((3, 2, 1), (0, 2, 1), (1, 2, 3)):
        with pytest.raises(ValueError, match="pass@"):
            difficulty.pass_at(*bad)


def test_tasks_worth_learning_come_hardest_first():
    counts = {"easy": (4, 4), "fair": (4, 3), "hard": (4, 1), "hopeless": (4, 0), "new": (0, 0)}
    assert difficulty.learnable(counts) == ["hard", "fair"]
    assert difficulty.learnable(counts, highest=0.5) == ["hard"]


def test_other_words_are_read_strictly():
    original = "Send 5 from Ann to Bob."
    assert rephrasing.read_text("<text>Bob gets 5 of Ann's.</text>\n", original) == "Bob gets 5 of Ann's."
    marked = ("<text>Bob gets 6.</text>", "Sure: <text>5</text>", "<text></text>", "<text>5<text>5</text>")
    for bad in ("Bob gets 5.", *marked):
        assert rephrasing.read_text(bad, original) is None


def test_a_request_is_said_in_other_words():
    async def ask(messages, seed):
        assert "Send 5 from Ann to Bob." in messages[1]["content"]
        return "<text>把 5 从 Ann 转给 Bob。</text>" if "Chinese" in messages[0]["content"] else "<text>no</text>"

    how = rephrasing.translate_messages("x", "zh")[0]["content"].split(": ")[1].split(".")[0]
    again = asyncio.run(rephrasing.rephrased(record(CALL, TOOL, DONE), ask, how, 0))
    assert again.messages == [ASKS[0], {"role": "user", "content": "把 5 从 Ann 转给 Bob。"}, CALL, TOOL, DONE]
    assert again.annotations["rephrased"] == how == "in Chinese"
    assert asyncio.run(rephrasing.rephrased(record(CALL), ask, "shorter", 0)) is None
    with pytest.raises(ValueError, match="language 'fr'"):
        rephrasing.translate_messages("x", "fr")
