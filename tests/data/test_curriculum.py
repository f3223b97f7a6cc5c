"""The curriculum: which prompts are drawn, and when levels open."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain_jax.data.curriculum import Curriculum, mixture

NAMES = ("gcd", "lcm", "aiw")
OBSERVED = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 8)), max_size=40)


def make(seed=0, max_level=3, promote_at=0.8):
    return Curriculum(NAMES, max_level, promote_at, seed)


def watch(curriculum, observed):
    """Reports results at each task's top level."""
    for name, solved in observed:
        curriculum.observe(name, len(curriculum.rates[name]) - 1, solved, 8)


@given(OBSERVED, st.integers(0, 1000))
def test_the_same_past_gives_the_same_choices(observed, start):
    first, second = make(), make()
    watch(first, observed)
    watch(second, observed)
    draws = range(start, start + 20)
    assert [first.choose(draw) for draw in draws] == [second.choose(draw) for draw in draws]
    restored = make()
    restored.restore(json.loads(json.dumps(first.state())))
    assert [restored.choose(draw) for draw in draws] == [first.choose(draw) for draw in draws]
    assert restored.state() == first.state()


@given(OBSERVED, OBSERVED)
def test_a_restored_curriculum_goes_on_as_the_first_and_shares_nothing_with_it(before, after):
    first = make()
    watch(first, before)
    saved = first.state()
    kept = json.dumps(saved)
    restored = make()
    restored.restore(saved)
    watch(first, after)
    assert json.dumps(saved) == kept
    watch(restored, after)
    assert restored.state() == first.state()


@given(OBSERVED, st.integers(0, 2))
def test_choices_are_open_levels_and_every_index_is_new(observed, max_level):
    curriculum = make(max_level=max_level)
    watch(curriculum, observed)
    chosen = [curriculum.choose(draw) for draw in range(30)]
    assert [index for _, _, index in chosen] == list(range(30))
    assert all(name in NAMES and 0 <= level < len(curriculum.rates[name]) <= max_level + 1 for name, level, _ in chosen)


def test_seeds_differ():
    assert [make(0).choose(d)[0] for d in range(40)] != [make(1).choose(d)[0] for d in range(40)]


def levels_after(solved, groups, promote_at=0.8):
    curriculum = make(promote_at=promote_at)
    watch(curriculum, [("gcd", solved)] * groups)
    return len(curriculum.rates["gcd"])


def test_a_level_opens_when_the_one_below_is_mastered_and_not_before():
    assert levels_after(solved=8, groups=1) == 1, "one lucky group is not mastery"
    assert levels_after(solved=8, groups=12) > 1
    assert levels_after(solved=4, groups=200) == 1
    assert levels_after(solved=8, groups=200) == 4, "no level above the highest"
    assert levels_after(solved=4, groups=200, promote_at=0.4) == 4


def test_what_is_seen_below_the_top_level_opens_nothing():
    curriculum = make()
    watch(curriculum, [("gcd", 8)] * 12)
    levels = len(curriculum.rates["gcd"])
    for _ in range(100):
        curriculum.observe("gcd", 0, 8, 8)
    assert len(curriculum.rates["gcd"]) == levels and len(curriculum.rates["lcm"]) == 1


def test_effort_goes_to_what_is_solved_half_of_the_time():
    curriculum = make(max_level=0)
    watch(curriculum, [("gcd", 0), ("lcm", 4), ("aiw", 8)] * 60)
    counts = Counter(curriculum.choose(draw)[0] for draw in range(3000))
    assert counts["lcm"] > 3 * counts["gcd"] and counts["lcm"] > 3 * counts["aiw"]
    assert min(counts.values()) > 100, "what is mastered, or hopeless, is still looked at"


def test_the_rate_follows_what_is_seen():
    curriculum = make(max_level=0)
    watch(curriculum, [("gcd", 6)] * 60)
    assert curriculum.rates["gcd"][0] == pytest.approx(0.75, abs=1e-3)
    watch(curriculum, [("gcd", 2)] * 60)
    assert curriculum.rates["gcd"][0] == pytest.approx(0.25, abs=1e-3)


def counts_of(curriculum, draws=4000):
    return Counter(curriculum.choose(draw)[:2] for draw in range(draws))


def test_prioritised_sampling_asks_by_failure():
    curriculum = Curriculum(NAMES, 0, 0.8, 0, effort="failure")
    watch(curriculum, [("gcd", 6), ("lcm", 4), ("aiw", 0)] * 60)
    counts = counts_of(curriculum)
    assert [counts[name, 0] / 4000 for name in NAMES] == pytest.approx([0.25 / 1.75, 0.5 / 1.75, 1 / 1.75], abs=0.03)


def test_uniform_effort_asks_all_alike():
    curriculum = Curriculum(NAMES, 0, 0.8, 0, effort="uniform")
    watch(curriculum, [("gcd", 8), ("lcm", 4), ("aiw", 0)] * 60)
    assert [counts_of(curriculum)[name, 0] / 4000 for name in NAMES] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_a_solved_level_is_not_asked_again_while_others_are_left():
    curriculum = Curriculum(NAMES, 0, 0.8, 0, retire_at=0.9)
    watch(curriculum, [("gcd", 8)] * 60)
    assert {name for name, _ in counts_of(curriculum)} == {"lcm", "aiw"}
    watch(curriculum, [("lcm", 8), ("aiw", 8)] * 60)
    assert {name for name, _ in counts_of(curriculum)} == set(NAMES), "somebody has to be asked"
    waiting = Curriculum(NAMES, 3, 1.0, 0, retire_at=0.9)
    watch(waiting, [("gcd", 8)] * 60)
    assert ("gcd", 0) in counts_of(waiting), "it has a level to open"
    lucky = Curriculum(NAMES, 0, 0.8, 0, retire_at=0.55)
    watch(lucky, [("gcd", 8)])
    assert lucky.rates["gcd"][0] > 0.55 and ("gcd", 0) in counts_of(lucky), "one lucky group is not enough"


def test_weights_are_shares_of_tasks_whatever_their_pass_rates():
    curriculum = Curriculum(NAMES, 3, 0.8, 0, mixture=mixture(("gcd=3", "aiw=0"), ()))
    watch(curriculum, [("gcd", 8), ("lcm", 4), ("aiw", 4)] * 30)
    counts = counts_of(curriculum)
    assert sum(n for (name, _), n in counts.items() if name == "gcd") / 4000 == pytest.approx(0.75, abs=0.03)
    assert not any(name == "aiw" for name, _ in counts) and len({level for name, level in counts if name == "gcd"}) == 4


def test_a_schedule_moves_shares_from_the_first_step_to_the_last():
    curriculum = Curriculum(NAMES[:2], 0, 0.8, 0, mixture=mixture((), ("gcd=1:0", "lcm=0:1")))
    shares = []
    for curriculum.progress in (0.0, 0.25, 1.0):
        shares.append(counts_of(curriculum)["lcm", 0] / 4000)
    assert shares == [0.0, pytest.approx(0.25, abs=0.03), 1.0]


def test_a_mixture_does_not_change_with_what_is_restored():
    first = Curriculum(NAMES, 2, 0.5, 0, effort="failure", retire_at=0.9, mixture=mixture(("gcd=2",), ("lcm=0:1",)))
    watch(first, [("gcd", 8), ("lcm", 4), ("aiw", 0)] * 9)
    second = Curriculum(NAMES, 2, 0.5, 0, effort="failure", retire_at=0.9, mixture=mixture(("gcd=2",), ("lcm=0:1",)))
    second.restore(json.loads(json.dumps(first.state())))
    first.progress = second.progress = 0.4
    assert first.weights() == second.weights() and first.buckets() == second.buckets()


def test_buckets_count_levels_by_their_live_pass_rates():
    curriculum = make(max_level=0)
    assert curriculum.buckets() == {"hopeless": 0, "hard": 0, "medium": 3, "easy": 0, "solved": 0}
    watch(curriculum, [("gcd", 0), ("lcm", 2), ("aiw", 8)] * 60)
    assert curriculum.buckets() == {"hopeless": 1, "hard": 1, "medium": 0, "easy": 0, "solved": 1}


@pytest.mark.parametrize("weights, schedule", [(("gcd",), ()), (("gcd=-1",), ()), (("gcd=1:2",), ()), ((), ("gcd=1",))])
def test_what_is_no_weight_is_refused(weights, schedule):
    with pytest.raises(ValueError, match="is no entry"):
        mixture(weights, schedule)
    with pytest.raises(ValueError, match="more than one weight"):
        mixture(("gcd=1", "gcd=2"), ())
