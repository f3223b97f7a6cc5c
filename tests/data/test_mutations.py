"""A thousand damaged records: each is read with what it says, or refused with a reason; none is lost, none crashes."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from posttrain_jax.data import templates
from posttrain_jax.data.checking import check

EXAMPLES = Path(__file__).parents[2] / "configs" / "examples"
LINES = [line for path in sorted(EXAMPLES.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
COUNT = 1000
ODD = (
    "\u202e",
    "\u0000",
    "\ufeff",
    "\ud83d",
    "e\u0301",
    "\U0001f9ea",
    "\u2028",
    "\ufffd",
    "<|im_end|>",
    "]~b]ai",
    "<think>",
)
WRONG = (None, 5, 1e308, True, "", [], {}, [1, 2], {"a": None}, [["x"]], [{"role": 3}], "x" * 3000)
MARKUP = set("call response tool_call tool think human assistant answer".split())


def drop(value, rng):
    value.pop(rng.choice(list(value)))
    return json.dumps(value)


def wrong_type(value, rng):
    value[rng.choice(list(value))] = rng.choice(WRONG)
    return json.dumps(value)


def rename(value, rng):
    name = rng.choice(list(value))
    at = rng.randrange(len(name))
    typo = rng.choice(
        (name[:at] + name[at + 1 :], name[:at] + name[at:][1::-1] + name[at + 2 :], f"{name}s", name[::-1])
    )
    return json.dumps({typo if key == name else key: inner for key, inner in value.items()})


def truncate(value, rng):
    text = json.dumps(value)
    return text[: rng.randrange(1, len(text))]


def odd_unicode(value, rng):
    name = rng.choice(list(value))
    text = value[name] if isinstance(value[name], str) else json.dumps(value[name])
    at = rng.randrange(len(text) + 1)
    value[name] = text[:at] + rng.choice(ODD) + text[at:]
    return json.dumps(value)


def nest(value, rng):
    name = rng.choice(list(value))
    inner = value[name]
    value[name] = rng.choice(([inner], {"text": inner}, [[inner]], {name: {name: inner}}, [inner, None]))
    if rng.random() < 0.1:
        return json.dumps(value)[:-1] + ', "deep": ' + "[" * 5000 + "]" * 5000 + "}"
    return json.dumps(value)


MUTATIONS = (drop, wrong_type, rename, truncate, odd_unicode, nest)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    rng = random.Random(20)
    mutants = [MUTATIONS[i % len(MUTATIONS)](json.loads(rng.choice(LINES)), rng) for i in range(COUNT)]
    path = tmp_path_factory.mktemp("mutants") / "mutants.jsonl"
    path.write_text("".join(f"{mutant}\n" for mutant in mutants), encoding="utf-8")
    found = list(check(str(path)))
    assert [outcome.where for outcome in found] == [f"{path} line {number}" for number in range(1, COUNT + 1)]
    return found


def test_each_is_read_or_refused_with_a_reason_in_one_line(outcomes):
    refused = [outcome for outcome in outcomes if outcome.record is None]
    accepted = [outcome for outcome in outcomes if outcome.record is not None]
    assert len(refused) + len(accepted) == COUNT
    assert min(len(refused), len(accepted)) > COUNT // 5
    for outcome in refused:
        (reason,) = outcome.notes
        assert reason and "\n" not in reason and not re.search(r"unpack|subscript|NoneType|object has no|Error", reason)


def test_those_that_are_read_give_tokens_and_read_the_same_again(outcomes):
    for outcome in outcomes:
        if outcome.record is not None:
            assert outcome.tokens > 0 and (outcome.trained > 0 or outcome.notes)
            assert templates.read(json.loads(json.dumps(outcome.record.to_dict()))).record == outcome.record


def test_no_word_of_those_that_are_read_is_lost(outcomes):
    checked = Counter()
    for outcome in outcomes:
        if outcome.record is None:
            continue
        kept = set(words(outcome.record.to_dict(), names=True))
        for word in words(json.loads(outcome.line)):
            assert word in kept or word in MARKUP, f"{word!r} of {outcome.line!r} is not in {outcome.record}"
            checked[outcome.record.template] += 1
    assert len(checked) > 20


def words(value, names=False):
    """The words of three letters and more in a JSON value; modes, speakers and (unless asked for) names left out."""
    if isinstance(value, dict):
        inner = [each for name, each in value.items() if names or name not in ("mode", "from", "role", "template")]
        return [word for each in [*inner, *(value if names else ())] for word in words(each, names)]
    if isinstance(value, list):
        return [word for each in value for word in words(each, names)]
    return re.findall(r"[^\W\d_]{3,}", value.lower()) if isinstance(value, str) else []
