"""Records come in order, once each, and a run that was stopped goes on to the same files."""

from __future__ import annotations

import asyncio
import json

import pytest

from posttrain_jax.data import checking, sources
from posttrain_jax.data.records import Record, from_dict
from posttrain_jax.errors import UserError
from posttrain_jax.synthesis import finished, procedural, tasks
from posttrain_jax.synthesis.produce import RECORDS, REJECTED, Attempt, produce
from posttrain_jax.synthesis.verbs import VERBS

FAMILIES = ("kimi_k2", "glm_4_6", "minimax_m1", "minimax_m2")


def task(index):
    return tasks.task(index, tuple(VERBS), 0, 3)


async def solved(index):
    if index % 7 == 3:
        return Attempt(index, None, "unlucky")
    await asyncio.sleep(0.001 * (index % 5))  # so that later ones end first
    return await procedural.attempt(await task(index))


def made(out, count=40, make=solved, settings=None, most=1000, **more):
    return asyncio.run(produce(out, make, settings or {"seed": 0}, count=count, concurrency=8, most=most, **more))


def test_a_run_stopped_anywhere_goes_on_to_the_same_files(tmp_path):
    whole = made(tmp_path / "whole")
    assert whole.accepted == 40 and whole.rejected == {"unlucky": 7}
    texts = {name: (tmp_path / "whole" / name).read_bytes() for name in (RECORDS, REJECTED)}
    for stop, cut in ((1, 0), (17, 1), (29, 200)):
        out = tmp_path / f"stopped{stop}"

        def told(counts, stop=stop):
            if counts.tried == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            made(out, told=told)
        written = (out / RECORDS).read_bytes()
        (out / RECORDS).write_bytes(written[: len(written) - cut])  # a line that did not reach the disk in full
        assert made(out) == whole
        assert {name: (out / name).read_bytes() for name in texts} == texts


def test_more_can_be_added_later(tmp_path):
    made(tmp_path / "once", 40)
    made(tmp_path / "twice", 15)
    made(tmp_path / "twice", 40)
    assert (tmp_path / "once" / RECORDS).read_bytes() == (tmp_path / "twice" / RECORDS).read_bytes()


def test_a_duplicate_is_rejected_also_after_a_stop(tmp_path):
    async def twice(index):
        attempt = await procedural.attempt(await task(index // 2))
        attempt.record.annotations["provenance"]["index"] = index
        return Attempt(index, attempt.record)

    counts = made(tmp_path, 3, twice)
    assert (counts.accepted, counts.rejected) == (3, {"duplicate": 2})
    assert made(tmp_path, 5, twice).rejected == {"duplicate": 4}


def test_work_of_other_settings_is_not_continued(tmp_path):
    made(tmp_path, 2)
    with pytest.raises(UserError, match=r"were made with seed=0, not 1; name another folder"):
        made(tmp_path, 4, settings={"seed": 1})


def test_an_end_is_found_where_nothing_is_accepted(tmp_path):
    async def never(index):
        return Attempt(index, None, "never")

    counts = made(tmp_path, 5, never, most=20)
    assert counts.accepted == 0 and counts.rejected == {"never": 20}


def test_an_error_ends_the_run_and_what_was_written_stays(tmp_path):
    async def breaks(index):
        if index == 5:
            raise OSError("the network is gone")
        return await solved(index)

    with pytest.raises(OSError, match="network"):
        made(tmp_path, 20, breaks)
    assert made(tmp_path, 20).accepted == 20


def test_records_are_read_and_written_in_every_family(tmp_path):
    made(tmp_path, 30)
    path = str(tmp_path / RECORDS)
    for family in FAMILIES:
        outcomes = list(checking.check(path, family))
        assert len(outcomes) == 30 and all(outcome.record is not None for outcome in outcomes)
        assert all(0 < outcome.trained < outcome.tokens for outcome in outcomes)
    source = sources.open(path)
    assert len(source) == 30 and source[0]["tools"] and source[0]["messages"][-1]["role"] == "assistant"


def test_a_record_says_where_it_comes_from_well_enough_to_make_it_again(tmp_path):
    made(tmp_path, 20)
    for line in (tmp_path / RECORDS).read_text().splitlines():
        record = from_dict(json.loads(line))
        found = record.annotations["provenance"]
        again = asyncio.run(procedural.attempt(asyncio.run(task(found["index"]))))
        assert again.record == record and record.reward == 1.0


def test_what_stands_beside_the_records(tmp_path):
    made(tmp_path, 60)
    report = finished.described(tmp_path)
    assert report["combinations"] == 60 and sum(report["world"].values()) == 60
    assert report["rejected"] == {"unlucky": 10} and report["tools"] > 100
    assert json.loads((tmp_path / "report.json").read_text()) == report
    page, picture = (tmp_path / "sample.html").read_text(), (tmp_path / "coverage.svg").read_text()
    assert page.count("<summary>tools</summary>") == finished.SHOWN and "<script" not in page
    assert picture.startswith("<svg") and picture.count("<title>") == report["tools"]


def test_pairs_of_records(tmp_path):
    made(tmp_path, 12)
    count = asyncio.run(finished.paired(tmp_path, task, 12))
    found = [from_dict(json.loads(line)) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(found) == count and {pair.annotations["pair"] for pair in found} == {"attempts", "refusal"}
    for family in FAMILIES:
        assert all(o.record is not None for o in checking.check(str(tmp_path / "pairs.jsonl"), family))


def test_rates_of_tasks_with_several_attempts(tmp_path):
    lines = [{"index": 1, "reason": "not rewarded"}, {"index": 2, "reason": "duplicate"}]
    lines += [{"index": i, "reason": "not rewarded"} for i in (3, 4, 5, 6)]
    (tmp_path / REJECTED).write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = Record([{"role": "user", "content": "?"}], annotations={"provenance": {"index": 0}})
    (tmp_path / RECORDS).write_text(json.dumps(record.to_dict()) + "\n")
    assert finished.rates(tmp_path, 3) == {"0": pytest.approx(2 / 3), "1": 0.0}
