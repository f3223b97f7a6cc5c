"""posttrain_jax.run.phases: what a recipe's phases are, and every mistake in them named with the nearest good value."""

import dataclasses
import json

import pytest

from posttrain_jax.planning.work import work
from posttrain_jax.run import phases, validate
from posttrain_jax.run.outline import describe
from posttrain_jax.run.recipe import Recipe, to_config

EXPERTS = {
    "stages": ["sft", "numbers", "words", "joined", "rl"],
    "phases": {
        "numbers": {"kind": "rl", "start": "sft", "tasks": {"names": ["gcd"]}, "rl": {"steps": 7, "promote_at": 1}},
        "words": {"kind": "rl", "start": "sft", "tasks": {"names": ["spell_backward"]}},
        "joined": {"kind": "distill", "start": "sft", "distill": {"teachers": ["numbers", "words"], "samples": 2}},
    },
}


def changed(**changes):
    """`EXPERTS`; ``__`` stands for a dot."""
    tree = json.loads(json.dumps(EXPERTS))
    for path, value in changes.items():
        place, (*sections, last) = tree, path.split("__")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return tree


def test_a_recipe_without_phases_has_its_stages_as_they_were():
    recipe = Recipe()
    found = phases.of(recipe)
    assert [(p.name, p.kind, p.start) for p in found] == [("sft", "sft", ""), ("rl", "rl", "")]
    assert all(dataclasses.replace(p.recipe, stages=recipe.stages) == recipe for p in found)
    assert phases.asked_for(found) == set()


def test_phases_have_their_own_settings_and_start_where_they_say():
    recipe = validate.recipe_from(EXPERTS)
    _, numbers, words, joined, last = phases.of(recipe)
    assert [p.kind for p in (numbers, words, joined, last)] == ["rl", "rl", "distill", "rl"] == [*recipe.kinds[1:]]
    assert [p.start for p in (numbers, words, joined, last)] == ["sft", "sft", "sft", ""]
    assert numbers.recipe.tasks.names == ("gcd",) and words.recipe.tasks.names == ("spell_backward",)
    assert (numbers.steps, words.steps) == (7, recipe.rl.steps) and numbers.recipe.rl.promote_at == 1.0
    assert numbers.recipe.rl.prompts == recipe.rl.prompts
    assert joined.settings.samples == 2 and joined.teachers == ("numbers", "words")
    assert len({recipe.seed, numbers.recipe.seed, words.recipe.seed, joined.recipe.seed}) == 4
    assert last.recipe.seed == recipe.seed
    assert phases.asked_for(phases.of(recipe)) == {"sft", "numbers", "words"}
    assert "numbers from sft: rl, 7 steps" in describe(recipe)["stages"]
    calls = (7 + 2 * recipe.rl.steps) * recipe.rl.minibatches
    assert work(recipe, "rl").calls == calls
    assert work(recipe, "sft").calls == recipe.sft.steps + recipe.distill.steps


def test_a_recipe_with_phases_survives_json_and_can_be_hashed():
    recipe = validate.recipe_from(EXPERTS)
    again = validate.recipe_from(json.loads(json.dumps(dataclasses.asdict(recipe))))
    assert again == recipe == validate.recipe_from(to_config(recipe)) and hash(again) == hash(recipe)
    other = validate.recipe_from(changed(phases__numbers__rl__steps=8))
    assert other != recipe
    assert validate.differences(dataclasses.asdict(recipe), other) == [
        "config.phases.numbers.rl.steps was 7 and is now 8"
    ]


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"phases__numbers__rl__stepz": 3},
            ["config.phases.numbers.rl.stepz", "nearest is config.phases.numbers.rl.steps"],
        ),
        ({"phases__numbers__model": {"layers": 3}}, ["config.phases.numbers.model", "no such key", "kind, start, "]),
        ({"phases__numbers__rl__steps": "3"}, ["config.phases.numbers.rl.steps='3'", "expected int"]),
        ({"phases__numbers__rl__steps": -1}, ["config.phases.numbers.rl.steps=-1", "at least 0"]),
        ({"phases__numbers__kind": "lr"}, ["config.phases.numbers.kind='lr'", "nearest is rl"]),
        ({"phases__numbers__start": 1}, ["config.phases.numbers.start=1", "expected str"]),
        ({"phases__numbers__start": "stf"}, ["config.phases.numbers.start='stf'", "nearest is 'sft'"]),
        ({"phases__numbers__start": "words"}, ["config.phases.numbers.start='words'", "no 'words' comes before"]),
        ({"phases__sft__start": "word"}, ["config.phases.sft.start='word'", "nearest is 'base'"]),
        ({"phases__numbers": 3}, ["config.phases.numbers=3", "a section of keys"]),
        ({"phases__other": {"rl": {}}}, ["config.phases.other", "has no kind", "sft, reward_model, dpo, distill, rl"]),
        ({"phases__heldout": {"kind": "rl"}}, ["config.phases", "'heldout'", "nearest is 'phase_heldout'"]),
        ({"phases__a-b": {"kind": "rl"}}, ["config.phases", "'a-b'", "nearest is 'a_b'"]),
        ({"stages": ["sft", "numbrs"]}, ["config.stages", "no 'numbrs'", "nearest is 'numbers'"]),
        ({"stages": ["sft", "numbers", "numbers"]}, ["config.stages", "'numbers' is named 2 times"]),
        ({"phases__joined__distill__teachers": ["numbr"]}, ["distill.teachers", "no 'numbr'", "nearest is 'numbers'"]),
        ({"phases__joined__distill__teachers": []}, ["distill.teachers=()", "'joined' learns from earlier phases"]),
        ({"phases__joined__distill__teachers": ["words"] * 2}, ["distill.teachers", "named 2 times"]),
        ({"phases__joined__distill__rows": 17}, ["config.phases.joined", "config.distill.rows=17", "microbatch_rows"]),
        ({"phases__words__rl__length": 20}, ["config.phases.words", "config.rl.length=20", "must hold"]),
        ({"phases__words__tasks__names": ["gdc"]}, ["config.phases.words", "no 'gdc'", "nearest is 'gcd'"]),
        ({"phases__words__rl__reward": {"model_weight": 0.5}}, ["config.phases.words", "no 'reward_model' before it"]),
    ],
)
def test_each_mistake_is_told_once_with_the_nearest_good_value(changes, words):
    (problem,) = validate.read(changed(**changes))[1]
    for word in words:
        assert word in problem


def test_phases_are_a_section():
    assert validate.read({"phases": 3})[1] == ["config.phases=3: a section of keys, not a value"]


def test_a_reward_model_before_a_phase_is_found_by_its_kind():
    tree = changed(phases__words__rl__reward={"model_weight": 0.5}, phases__critic={"kind": "reward_model"})
    tree["stages"] = ["sft", "numbers", "critic", "words"]
    recipe = validate.recipe_from(tree)
    assert phases.of(recipe)[-1].recipe.stages == ("sft", "reward_model", "rl")
    tree["stages"] = ["sft", "numbers", "words", "critic"]
    (problem,) = validate.read(tree)[1]
    assert "no 'reward_model' before it" in problem
