"""Calls of tools against those that were wanted, in the shapes of the Berkeley leaderboard's files."""

import pytest

from posttrain_jax.rewards.graders.calls import abstained, called, valid

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather.find",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "limit": {"type": "number"},
                    "detailed": {"type": "boolean"},
                    "where": {"type": "object"},
                    "hours": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
]
WANTED = {"city": ["Ulm", "Ulm, DE"], "days": [3, ""], "limit": [2.0, ""], "detailed": [True, ""]}
NESTED = {"city": ["Ulm"], "where": [{"zone": ["a", "b"], "floor": [1, ""]}], "hours": [[1, 2], [3]]}


def message(*calls, **more):
    functions = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return {"role": "assistant", "content": "", "tool_calls": functions, **more}


def one(**given):
    return message(("weather.find", given))


@pytest.mark.parametrize(
    "given, right",
    [
        ({"city": "Ulm"}, True),
        ({"city": "ulm de", "days": 3, "limit": 2, "detailed": True}, True),
        ({"city": "Bonn"}, False),
        ({"days": 3}, False),
        ({"city": "Ulm", "days": 4}, False),
        ({"city": "Ulm", "days": 3.0}, False),
        ({"city": "Ulm", "days": "3"}, False),
        ({"city": "Ulm", "detailed": 1}, False),
        ({"city": "Ulm", "colour": "red"}, False),
    ],
)
def test_arguments_are_among_the_accepted_values_and_only_optional_ones_are_left_out(given, right):
    assert called(one(**given), [{"weather.find": WANTED}], TOOLS).correct == right


@pytest.mark.parametrize(
    "where, hours, right",
    [
        ({"zone": "A"}, [1, 2], True),
        ({"zone": "b", "floor": 1}, [3], True),
        ({"zone": "c"}, [3], False),
        ({"floor": 1}, [3], False),
        ({"zone": "a", "door": 1}, [3], False),
        ({"zone": "a"}, [2, 1], False),
        ({"zone": "a"}, [True, 2], False),
    ],
)
def test_objects_and_lists_are_compared_by_what_is_in_them(where, hours, right):
    given = one(city="Ulm", where=where, hours=hours)
    assert called(given, [{"weather.find": NESTED}], TOOLS).correct == right


def test_a_required_argument_is_never_left_out():
    assert not called(one(), [{"weather.find": {"city": ["Ulm", ""]}}], TOOLS).correct


def test_parallel_calls_come_in_any_order_and_each_answers_for_one():
    either, ulm = {"weather.find": {"city": ["Ulm", "Bonn"]}}, {"weather.find": {"city": ["Ulm"]}}
    calls = [("weather.find", {"city": "Ulm"}), ("weather.find", {"city": "Bonn"})]
    assert called(message(*calls), [either, ulm], TOOLS).correct, "the first call fits both, and is kept for the second"
    assert called(message(*calls[::-1]), [either, ulm], TOOLS).correct
    assert not called(message(calls[0], calls[0]), [{"weather.find": {"city": ["Bonn"]}}, ulm], TOOLS).correct
    assert not called(message(*calls), [ulm], TOOLS).correct, "one call too many"
    assert not called(message(calls[0]), [either, ulm], TOOLS).correct, "one too few"


def test_markup_that_cannot_be_read_is_wrong_however_it_reads():
    verdict = called({**one(city="Ulm"), "errors": ["broken"]}, [{"weather.find": WANTED}], TOOLS)
    assert not verdict.correct and not verdict.well_formed
    assert not abstained({"content": "no", "errors": ["broken"]}).correct
    assert abstained({"content": "no tool helps"}).correct and not abstained(one(city="Ulm")).correct


def test_valid_calls_are_what_the_schemas_ask_for():
    assert valid(one(city="Bonn", days=1), TOOLS) and valid(message(("stop", {})), TOOLS)
    for wrong in (one(days=1), one(city=5), one(city="Ulm", colour="red"), message(("go", {}))):
        assert not valid(wrong, TOOLS)
    assert not valid({**one(city="Ulm"), "errors": ["broken"]}, TOOLS)
