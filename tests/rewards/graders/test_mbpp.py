"""Real reference solutions, a few of them; all are in ``benchmarks/graders.py``."""

import gzip
import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

ODD = {533, 596, 601, 912, 927}  # tests with types, the standard library, classes, conversions, setup


@pytest.mark.skipif("POSTTRAIN_DATA" not in os.environ, reason="POSTTRAIN_DATA names no folder with mbpp/")
def test_references_pass_and_mutants_that_fail_are_rejected(sandbox):
    import graders

    with gzip.open(Path(os.environ["POSTTRAIN_DATA"]) / "mbpp" / "train_val_prompt.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    chosen = rows[::32] + [row for row in rows if row["task_id"] in ODD]
    numbers = graders.judge(sandbox, chosen, workers=2, count=1)
    assert numbers["references_not_passed"] == {} and numbers["ungraded"] == 0
    assert numbers["mutants_failing"] > 5 and numbers["failing_but_accepted"] == []
