"""Preference pairs: every shape they come in, what is refused, and the rows that keep them together."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from posttrain_jax import chat as chats
from posttrain_jax.data import pairs, pipeline, tasks
from posttrain_jax.errors import UserError

SHARED = Path(os.environ.get("POSTTRAIN_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
ASK = {"role": "user", "content": "2+2?"}
GOOD, BAD = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}
FOUR_OR_FIVE = {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}


@pytest.fixture(scope="module")
def chat():
    return chats.for_family("minimax_m2")


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"prompt": [ASK], "chosen": GOOD, "rejected": [BAD]},
        {"prompt": "2+2?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        {
            "instruction": "2+2?",
            "completions": [
                {"response": "4 or 5", "overall_score": 6},
                {"response": "5", "overall_score": 1.5},
                {"response": "4", "overall_score": 9},
            ],
        },
        {"prompt": "2+2?", "responses": [{"text": "5", "rating": -1}, {"text": "4", "rating": 0}]},
    ],
)
def test_every_shape_is_the_same_pair(record):
    assert pairs.pair(record, "") == FOUR_OR_FIVE
    system = {"role": "system", "content": "Be brief."}
    assert pairs.pair(record, "Be brief.") == {**FOUR_OR_FIVE, "prompt": [system, ASK]}


def test_a_transcript_that_parts_earlier_is_answered_over_several_turns():
    begin = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2+2?\n\nAssistant:"
    found = pairs.pair({"chosen": begin + " 4", "rejected": begin + " Why?\n\nHuman: So?\n\nAssistant: 5"}, "")
    assert [message["content"] for message in found["prompt"]] == ["Hi", "Hello", "2+2?"]
    assert [message["content"] for message in found["rejected"]] == ["Why?", "So?", "5"]


@pytest.mark.parametrize(
    "record, reason",
    [
        ([1], "expected an object, found list"),
        ({"prompt": "2+2?", "chosen": "4"}, "found fields: prompt, chosen"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "4"}, "are the same"),
        ({"prompt": "2+2?", "chosen": 4, "rejected": "5"}, "field 'chosen' is neither text nor messages"),
        ({"prompt": [GOOD], "chosen": "4", "rejected": "5"}, "does not end with a message to answer"),
        ({"prompt": "2+2?", "chosen": [ASK], "rejected": "5"}, "'chosen' does not end with an answer"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
            "answer different prompts",
        ),
        (
            {"chosen": "\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
            "'chosen' begins with the assistant",
        ),
        ({"prompt": "2+2?", "responses": [{"text": "4", "score": 1}, {"text": "5", "score": 1}]}, "do not differ"),
        ({"prompt": "2+2?", "responses": [{"text": "4", "score": 1}, {"text": "5"}]}, "response 2 lacks"),
        ({"prompt": "2+2?", "responses": "4"}, "not a list of objects"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_line(tmp_path, record, reason):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "1+1?", "chosen": "2", "rejected": "3"}) + "\n\n" + json.dumps(record))
    with pytest.raises(UserError, match=reason) as error:
        pairs.open(f"jsonl:{path}", "train")
    assert f"{path} line 3" in str(error.value)


def test_a_prompt_is_in_one_split_whatever_its_answers(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"{i // 2}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(400)]
    path.write_text("\n".join(map(json.dumps, lines)))
    train, heldout = (pairs.open(f"jsonl:{path}", split) for split in tasks.SPLITS)
    asked = [{source[i]["prompt"][0]["content"] for i in range(len(source))} for source in (train, heldout)]
    assert not asked[0] & asked[1] and len(train) + len(heldout) == 400
    assert 20 < len(heldout) < 90  # one in eight of 200 prompts, twice each
    assert heldout.where(0).startswith(f"{path} line ")
    path.write_text(json.dumps(lines[0]))
    with pytest.raises(UserError, match="none whose prompt falls into the"):
        for split in tasks.SPLITS:
            pairs.open(f"jsonl:{path}", split)


def test_of_made_pairs_the_verifier_accepts_the_chosen_and_refuses_the_other():
    names = ("gcd", "syllogism", "count_bits")
    for split in tasks.SPLITS:
        source = pairs.open("tasks", split, names=names, max_level=1, seed=3)
        same_steps = 0
        for index in range(24):
            record = source[index]
            number, cell = divmod(index, 2 * len(names))
            level, name = divmod(cell, len(names))
            problem = tasks.problem(names[name], level, number, split, seed=3)
            (chosen,), (rejected,) = record["chosen"], record["rejected"]
            assert record["prompt"][-1]["content"] == problem.question
            assert tasks.score(problem, chosen["content"]) >= 1.0 > tasks.score(problem, rejected["content"])
            same_steps += chosen["reasoning_content"] == rejected["reasoning_content"]
        assert 6 <= same_steps < 24


def open_batches(chat, state=None):
    source = pairs.open("tasks", "train", names=("gcd", "count_bits"), max_level=1, system="Think.")
    return pipeline.batches(
        source, chat, rows=3, length=256, seed=1, on_too_long="error", state=state, kind=pairs.PAIRS, section="dpo"
    )


def test_a_row_keeps_both_answers_of_a_pair_and_marks_what_answers(chat):
    batch = next(open_batches(chat))
    seen = 0
    for row in range(3):
        ids = batch["segment_ids"][row]
        assert ids.max() % 2 == 0 and np.all(np.diff(ids[ids > 0]) >= 0)
        for k in range(1, ids.max() // 2 + 1):
            texts = []
            for segment in (2 * k - 1, 2 * k):
                own = np.flatnonzero(ids == segment)
                tokens, answer = batch["tokens"][row, own], batch["answer"][row, own]
                assert batch["positions"][row, own].tolist() == list(range(len(own)))
                assert batch["mask"][row, own].tolist() == [0.0] * (len(own) - 1) + [0.5]
                assert tokens[-1] in chat.stop_tokens
                assert batch["targets"][row, own][answer > 0].tolist() == tokens[1:][answer[:-1] > 0].tolist()
                first = int(np.argmax(answer)) + 1
                texts.append(chat.tokenizer.decode(tokens[:first].tolist()))
                assert np.all(answer[first - 1 : -1] == 1) and answer[-1] == 0
            assert texts[0] == texts[1] and texts[0].endswith("]~b]ai\n<think>\n")
            seen += 1
    assert batch["mask"].sum() == seen > 3


def test_the_stream_goes_on_where_it_was(chat):
    stream = open_batches(chat)
    for _ in range(3):
        next(stream)
    other = open_batches(chat, json.loads(json.dumps(stream.state())))
    for _ in range(3):
        one, same = next(stream), next(other)
        assert all(one[name].tobytes() == same[name].tobytes() for name in one)


def test_a_pair_that_fits_no_row_says_what_to_set(chat):
    made = [{"prompt": [ASK], "chosen": [GOOD], "rejected": [{"role": "assistant", "content": "five " * 40}]}]
    stream = pipeline.batches(
        made, chat, rows=1, length=64, seed=0, on_too_long="error", kind=pairs.PAIRS, section="reward_model"
    )
    with pytest.raises(UserError, match="reward_model.length=64: set reward_model.length to"):
        next(stream)


@pytest.mark.skipif(not (SHARED / "hh_rlhf").is_dir(), reason="the real data are not here")
@pytest.mark.parametrize("name", ["hh_rlhf/harmless_a", "preference_demo/dpo_en", "preference_demo/dpo_zh"])
def test_real_pairs_are_read_to_the_last_line(chat, name):
    train, heldout = (pairs.open(f"jsonl:{SHARED / name}.jsonl.gz", split) for split in tasks.SPLITS)
    assert len(train) + len(heldout) == {"hh_rlhf/harmless_a": 1181}.get(name, 300)
    for index in range(0, len(heldout), 10):
        tokens = pairs.encode(chat, heldout[index])
        assert sum(tokens.chosen_answer) and sum(tokens.rejected_answer)
        assert tokens.chosen[-1] in chat.stop_tokens and tokens.rejected[-1] in chat.stop_tokens
