"""posttrain_jax.run.areas: one row an area, in the same place all the time."""

import io

import pytest
from rich.console import Console

from posttrain_jax.run.areas import Areas, sparkline
from posttrain_jax.run.screen import LiveBar, Screen


def told(**rewards):
    parts = {}
    for area, reward in rewards.items():
        parts |= {f"reward/{area}": reward, f"pass_rate/{area}": reward / 2, f"share/{area}": 1 / len(rewards)}
    return {"reward": 0.5, **parts}


def drawn(shown, width=100, height=40):
    console = Console(record=True, width=width, height=height, file=io.StringIO(), force_terminal=True)
    console.print(shown)
    return console.export_text()


def rows(areas, **size):
    return {line.split()[0]: line.split() for line in drawn(areas, **size).splitlines()}


def test_a_row_has_the_reward_its_mean_its_change_and_the_share_of_prompts():
    areas = Areas(window=4)
    for step in range(6):  # of 0 … 5 the window holds 2 … 5
        areas.update(told(logic=step / 10, algebra=0.5))
    found = rows(areas)
    assert list(found) == ["area", "algebra", "logic"], "in the order of their names"
    assert found["logic"] == ["logic", "0.500", "0.350", "+0.200", "25%", "50%", "▁▃▆█"]
    assert found["algebra"] == ["algebra", "0.500", "0.500", "+0.000", "25%", "50%", "▁▁▁▁"]


def test_an_area_that_was_not_asked_keeps_its_row_and_its_mean():
    areas = Areas()
    areas.update(told(logic=0.25, algebra=0.5))
    areas.update(told(algebra=0.7))
    assert rows(areas)["logic"] == ["logic", "–", "0.250", "–", "–", "–", "▁"]


def test_columns_stand_still_whatever_the_numbers_are():
    areas, places = Areas(), set()
    for reward in (0.0, -1.5, 1.0, 0.123456):
        areas.update(told(logic=reward))
        head, row = drawn(areas).splitlines()
        places.add((head.index("trend"), len(row) - len(row.lstrip("logic")), head))
    assert len(places) == 1


@pytest.mark.parametrize(("height", "shown"), [(40, 12), (12, 6), (3, 1)])
def test_many_areas_stay_within_one_screen(height, shown):
    areas = Areas()
    areas.update(told(**{f"area_{i:02}": 0.1 for i in range(30)}))
    lines = drawn(areas, height=height).splitlines()
    assert len(lines) == shown + 2 and lines[-1] == f"and {30 - shown} more areas in metrics.jsonl"


def test_no_areas_no_table():
    areas = Areas()
    areas.update({"loss": 2.0})
    assert not areas and drawn(areas) == ""


def test_the_live_bar_ends_with_the_table():
    bar = LiveBar("rl", 10, 0)
    bar.update(1, {**told(logic=0.5, shop=1.0), "pass_rate": 0.25})
    lines = drawn(bar).splitlines()
    assert "1/10" in lines[0] and "pass 25.0%" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["area", "logic", "shop"]


def test_a_log_gets_a_line_of_the_areas_now_and_then():
    file = io.StringIO()
    with Screen(file=file).stage("rl", 100) as bar:
        for step in range(1, 101):
            bar.update(step, told(logic=step / 100, shop=0.5))
    own = [line.strip() for line in file.getvalue().splitlines() if "logic" in line]
    assert len(own) == 4 and "\x1b" not in file.getvalue()
    assert own[-1] == "reward (mean of 20 steps, its change): logic 1.000 (0.905, +0.100), shop 0.500 (0.500, +0.000)"


def test_a_file_that_makes_a_world_is_known_by_its_name():
    areas = Areas()
    areas.update({"reward/code:/data/of/somebody/far/away/mbpp.jsonl": 0.5})
    assert "code:mbpp.jsonl" in rows(areas)


def test_sparkline():
    assert sparkline([0.0, 1.0, 7.0]) == "▁▂█"
    assert sparkline([2.0, 2.0]) == "▁▁" and sparkline([float("nan"), 1.0]) == "·▁" and sparkline([]) == ""
