"""Records that are there, worked over: what is dropped and why, what is added, and that a stop changes nothing."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from posttrain_jax.data import checking
from posttrain_jax.data.records import from_dict
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.judges.endpoint import Refused
from posttrain_jax.synthesis import near_duplicates, refining
from posttrain_jax.synthesis.produce import RECORDS, REJECTED, produce


def words(seed, count=60):
    dice = random.Random(seed)
    return " ".join(f"w{dice.randrange(5000)}" for _ in range(count))


OWN = [{"instruction": f"Task {seed}: {words(seed)}", "output": words(100 + seed)} for seed in range(6)]
NEAR = {**OWN[1], "output": OWN[1]["output"] + " indeed"}
TRAJECTORY = {
    "record": 1,
    "messages": [{"role": "assistant", "content": words(50)}],
    "annotations": {"provenance": {"index": 7, "key": "k", "world": "bank"}},
}
LINES = [*OWN[:3], NEAR, {"nonsense": 1}, OWN[0], TRAJECTORY, *OWN[3:]]
KEPT = [1, 2, 3, 7, 8, 9, 10]  # lines


async def ask(messages, seed):
    """Says a request again, backwards but for its number; shouts cannot be used."""
    await asyncio.sleep(0.001 * (seed % 3))  # so that later ones end first
    text = messages[1]["content"].strip("`\n")
    if "refuse" in messages[0]["content"]:
        raise Refused("too long")
    return "no" if "as a shout" in messages[0]["content"] else f"<text>{' '.join(reversed(text.split(' ')))}</text>"


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "in").mkdir()
    for name, part in (("a.jsonl", LINES[:5]), ("b.jsonl", LINES[5:])):
        (tmp_path / "in" / name).write_text("".join(json.dumps(line) + "\n" for line in part))
    return refining.Inputs([str(tmp_path / "in")])


def refined(out, inputs, steps, asked=ask, **more):
    work = refining.Refining(inputs, steps, asked if steps.styles else None)
    many = {"count": len(work), "most": len(work), "concurrency": 4, **more}
    counts = asyncio.run(produce(out, work.make, {"seed": 0}, **many))
    read = [[json.loads(line) for line in (out / name).read_text().splitlines()] for name in (RECORDS, REJECTED)]
    return counts, *read


def source(line):
    return line["annotations"]["provenance"]["source"].split("/")[-1]


def test_near_duplicates_and_what_cannot_be_read_are_dropped_with_their_reasons(tmp_path, inputs):
    counts, kept, dropped = refined(tmp_path / "out", inputs, refining.Steps(threshold=0.8))
    assert [source(line) for line in kept] == [
        *("a.jsonl line 1", "a.jsonl line 2", "a.jsonl line 3"),
        *("b.jsonl line 2", "b.jsonl line 3", "b.jsonl line 4", "b.jsonl line 5"),
    ]
    assert [(line["reason"], line["source"].split("/")[-1]) for line in dropped] == [
        ("near-duplicate", "a.jsonl line 4"),
        ("unreadable", "a.jsonl line 5"),
        ("near-duplicate", "b.jsonl line 1"),
    ]
    assert [line["of"].split("/")[-1] for line in dropped if "of" in line] == ["a.jsonl line 2", "a.jsonl line 1"]
    assert "no template has these fields" in dropped[1]["detail"]
    assert counts.accepted == 7 and counts.rejected == {"near-duplicate": 2, "unreadable": 1}
    report = refining.reported(tmp_path / "out")
    assert report == {"kept": 7, "rephrased": {}, "dropped": {"near-duplicate": 2, "unreadable": 1}}
    assert kept[3]["annotations"]["provenance"]["before"]["world"] == "bank"
    assert all(outcome.record for outcome in checking.check(str(tmp_path / "out" / RECORDS)))


def test_copies_are_said_in_other_words_and_tell_which(tmp_path, inputs):
    steps = refining.Steps(threshold=0.8, styles=["shorter", "as a shout"], copies=2, generator="m")
    counts, kept, dropped = refined(tmp_path / "out", inputs, steps)
    copies = [line for line in kept if "rephrased" in line["annotations"]["provenance"]]
    assert [source(line) for line in copies] == [
        f"{name} line {n}"
        for name, n in (("a.jsonl", 1), ("a.jsonl", 2), ("a.jsonl", 3), ("b.jsonl", 3), ("b.jsonl", 4), ("b.jsonl", 5))
    ]
    for line in copies:
        told = line["annotations"]["provenance"]
        assert (told["rephrased"], told["generator"]) == ("shorter", "m")
        original = next(each for each in kept if source(each) == source(line))
        assert line["messages"][1:] == original["messages"][1:]
        assert sorted(line["messages"][0]["content"].split()) == sorted(original["messages"][0]["content"].split())
        assert from_dict(line).messages[0]["content"] != original["messages"][0]["content"]
    assert counts.rejected == {"near-duplicate": 2, "unreadable": 1, "not rephrased": 6, "no request to rephrase": 2}
    assert refining.reported(tmp_path / "out")["rephrased"] == {"shorter": 6}
    assert all(line["rephrased"] == "as a shout" for line in dropped if line["reason"] == "not rephrased")
    assert [line["annotations"]["provenance"]["index"] for line in kept] == sorted(
        {*range(counts.tried)} - {line["index"] for line in dropped}
    )


def test_a_stop_changes_nothing(tmp_path, inputs):
    steps = refining.Steps(threshold=0.8, styles=["shorter", "formally"], copies=2)
    refined(tmp_path / "whole", inputs, steps)
    for stop in (1, 6, 15):

        def told(counts, stop=stop):
            if counts.tried == stop:
                raise KeyboardInterrupt

        out = tmp_path / f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            refined(out, inputs, steps, told=told)
        refined(out, inputs, steps)
        for name in (RECORDS, REJECTED):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_evaluation_texts_keep_out_records_and_copies(tmp_path, inputs):
    run = " ".join(OWN[2]["instruction"].split()[5:20])
    backwards = " ".join(reversed(OWN[3]["instruction"].split()[5:20]))
    steps = refining.Steps(styles=["shorter"], held=near_duplicates.held_out([run, backwards]))
    counts, kept, dropped = refined(tmp_path / "out", inputs, steps)
    found = [line for line in dropped if line["reason"] == "in the evaluation data"]
    assert [line["source"].split("/")[-1] for line in found] == ["a.jsonl line 3", "b.jsonl line 3"]
    assert "rephrased" not in found[0] and found[1]["rephrased"] == "shorter"
    assert counts.rejected["near-duplicate"] == counts.rejected["duplicate"] == 0  # nobody asked for that


def test_copies_that_are_alike_are_one(tmp_path, inputs):
    counts, *_ = refined(tmp_path / "out", inputs, refining.Steps(threshold=0.8, styles=["shorter"], copies=2))
    assert counts.rejected["duplicate"] == 6


def test_a_server_that_refuses_is_a_reason(tmp_path, inputs):
    counts, *_ = refined(tmp_path / "out", inputs, refining.Steps(threshold=0.8, styles=["refuse"]))
    assert counts.rejected["refused by the server"] == 6


def test_other_words_need_a_model(inputs):
    with pytest.raises(ValueError, match="need a model"):
        refining.Refining(inputs, refining.Steps(styles=["shorter"]))


def test_the_digest_is_of_what_is_said(tmp_path, inputs):
    before = inputs.digest()
    assert refining.Inputs([str(tmp_path / "in" / "*.jsonl")]).digest() == before
    with (tmp_path / "in" / "b.jsonl").open("a") as file:
        file.write(json.dumps(OWN[0]) + "\n")
    assert refining.Inputs([str(tmp_path / "in")]).digest() != before
    with pytest.raises(UserError, match="c.jsonl is missing; the nearest there is [ab].jsonl"):
        refining.Inputs([str(tmp_path / "in" / "c.jsonl")])
