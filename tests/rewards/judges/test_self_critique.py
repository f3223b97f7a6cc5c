"""Ranking a group in pairs, with judges whose mind is known."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opinions import Scripted, by_number

from posttrain_jax.rewards.judges.judge import Comparison
from posttrain_jax.rewards.judges.rubrics import CORE
from posttrain_jax.rewards.judges.self_critique import Outcome, outcome, pairings, rank, win_rates
from posttrain_jax.rewards.judges.tally import Tally, count


def ranked(judge, answers, **options):
    found = asyncio.run(rank(judge, "Which?", answers, CORE, **{"seed": 3, **options}))
    return win_rates(len(answers), found), found


@given(st.lists(st.integers(0, 9), min_size=2, max_size=7))
def test_the_reward_is_the_share_of_opponents_beaten(numbers):
    rates, _ = ranked(Scripted(by_number), list(map(str, numbers)))
    for mine, rate in enumerate(rates):
        others = numbers[:mine] + numbers[mine + 1 :]
        beaten = sum(1.0 if numbers[mine] > other else 0.5 if numbers[mine] == other else 0.0 for other in others)
        assert rate == pytest.approx(beaten / len(others))
    assert sum(rates) == pytest.approx(len(numbers) / 2)


@pytest.mark.parametrize("always", [1, -1])
def test_a_judge_that_goes_by_place_makes_no_difference(always):
    rates, found = ranked(Scripted(lambda a, b: always), ["1", "2", "3", "4"])
    assert rates == [0.5] * 4
    assert all(one == Outcome(0.5, consistent=False) for one in found.values())
    assert count(found.values(), (0.0, 0)).metrics()["judge_consistent"] == 0.0


def test_every_pair_is_asked_in_both_orders_with_seeds_of_its_own():
    judge = Scripted(by_number)
    ranked(judge, ["1", "2", "3"])
    assert {(a, b) for a, b, _ in judge.asked} == set(itertools.permutations("123", 2))
    assert len({seed for _, _, seed in judge.asked}) == 6
    again = Scripted(by_number)
    ranked(again, ["1", "2", "3"])
    assert again.asked == judge.asked


def test_a_verdict_that_cannot_be_read_wins_nothing_and_is_counted():
    rates, found = ranked(Scripted(lambda a, b: None if "2" in (a, b) and a < b else by_number(a, b)), ["1", "2", "3"])
    assert rates == [0.25, 0.5, 0.75]
    tally = count(found.values(), (0.0, 0))
    assert (tally.asked, tally.malformed, tally.turnable, tally.turned) == (3, 2, 1, 1)


def test_a_judge_that_fails_is_no_opponent():
    judge = Scripted(lambda a, b: "failed" if "9" in (a, b) else by_number(a, b))
    rates, found = ranked(judge, ["1", "9", "3"])
    assert rates == [0.0, None, 1.0]
    tally = count(found.values(), (0.0, 0))
    assert (tally.asked, tally.failed, tally.failure) == (3, 2, "away")


def test_a_mistake_of_the_program_is_no_failure_of_the_judge():
    with pytest.raises(ZeroDivisionError):
        ranked(Scripted(lambda a, b: 1 // 0), ["1", "2"])


def test_equal_answers_are_a_tie_that_nobody_is_asked_about():
    judge = Scripted(by_number)
    rates, found = ranked(judge, ["5", "5", "7"])
    assert rates == [0.25, 0.25, 1.0] and len(judge.asked) == 4
    assert count(found.values(), (0.0, 0)).asked == 2


@pytest.mark.parametrize("one, two", itertools.product((-1, 0, 1, None), repeat=2))
def test_only_verdicts_that_turn_with_the_places_decide(one, two):
    found = outcome(Comparison(one), Comparison(two))
    decided = one is not None and two == -one
    assert found.score == (0.5 + 0.5 * one if decided else 0.5)
    assert found.consistent == (None if None in (one, two) else decided)
    assert found.malformed == [one, two].count(None)


@given(st.integers(2, 12), st.integers(0, 12), st.integers(0, 99))
def test_all_meet_as_many_opponents_as_asked(count, opponents, seed):
    pairs = pairings(count, opponents, seed)
    assert len(set(pairs)) == len(pairs) and all(0 <= i < j < count for i, j in pairs)
    met = [sum(one in pair for pair in pairs) for one in range(count)]
    wanted = opponents if 0 < opponents < count - 1 else count - 1
    odd = wanted % 2 and count % 2
    assert met == [wanted + bool(odd)] * count
    assert pairs == pairings(count, opponents, seed)


def test_another_seed_draws_other_opponents():
    assert len({tuple(pairings(8, 2, seed)) for seed in range(20)}) > 10


def test_tallies_add_up():
    one, two = Tally(4, 1, 2, 3, 1, 1.5, 2, "slow"), Tally(asked=2, turned=1, turnable=1)
    assert one + two == Tally(6, 1, 3, 4, 1, 1.5, 2, "slow")
    assert (one + two).metrics() == pytest.approx(
        {"judge_agreement": 0.75, "judge_consistent": 0.75, "judge_malformed": 0.2, "judge_failed": 1 / 6}
    )
    assert Tally().metrics() == {}
