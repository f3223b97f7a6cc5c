"""posttrain_jax.run.validate: each mistake is found, named, and told together with all the others."""

import dataclasses
import json
import sys
import types

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from posttrain_jax.run import validate
from posttrain_jax.run.outline import describe
from posttrain_jax.run.recipe import (
    Recipe,
    flatten,
    settings,
    to_config,
)
from posttrain_jax.run.sizes import checkpoint_bytes, training_bytes

# sizes the expected sentences are written for, whatever the defaults become
SIZES = {
    "model": {"heads": 4, "kv_heads": 2, "experts": 8, "vocab": 640, "max_length": 256},
    "sft": {"rows": 16, "microbatch_rows": 16, "length": 256},
    "rollout": {"max_prompt": 96, "max_response": 64},
    "rl": {"prompts": 32, "minibatches": 2, "length": 256, "overlong_buffer": 16},
}


def problems(**assignments):
    """Mistakes of a sound recipe with these keys changed; ``__`` stands for a dot."""
    config = to_config(validate.recipe_from(SIZES))
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in assignments.items()})
    return validate.read(config)[1]


def test_default_recipe_is_sound_and_survives_json():
    recipe = Recipe()
    stored = json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert validate.recipe_from(stored) == recipe == validate.recipe_from(to_config(recipe))


def test_a_key_left_out_keeps_its_default():
    assert validate.recipe_from({"sft": {"steps": 7}}) == Recipe(sft=dataclasses.replace(Recipe().sft, steps=7))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"sft__rows": 17}, ["config.sft.rows=17", "multiple", "microbatch_rows=16"]),
        ({"sft__length": 512}, ["config.sft.length=512", "max_length=256"]),
        ({"rollout__max_prompt": 250, "rl__length": 320}, ["max_prompt=250", "314", "max_length=256"]),
        ({"rl__length": 64}, ["config.rl.length=64", "160"]),
        ({"rl__overlong_buffer": 100}, ["config.rl.overlong_buffer=100", "max_response=64"]),
        ({"rl__objective__cispo__min_ratio": 6.0}, ["config.rl.objective.cispo.min_ratio=6.0", "max_ratio=5.0"]),
        ({"rl__sampling__final": 0.6, "rl__sampling__plateau": 5}, ["plateau=5", "final=0.6", "nearest is 0"]),
        ({"rl__sampling__plateau": 5, "rl__carry_over": 1}, ["rl.carry_over=1", "temperature that moves"]),
        ({"rl__judge__name": "oracle"}, ["config.rl.judge.name='oracle'", "one of none, self_critique, genrm"]),
        ({"rl__judge__endpoint__url": "http://host/v1"}, ["rl.judge.endpoint.url", "name is 'none'", "self_critique"]),
        (
            {"rl__judge__endpoint__url": "host:80/v1", "rl__judge__name": "genrm"},
            ["config.rl.judge.endpoint.url='host:80/v1'", "http://host:80/v1"],
        ),
        (
            {"rl__judge__name": "self_critique", "rl__judge__max_prompt": 240, "rl__judge__max_response": 32},
            ["config.rl.judge", "272", "max_length=256"],
        ),
        (
            {"rl__judge__name": "self_critique", "rl__judge__max_prompt": 99, "rl__judge__opponents": 8}
            | {"rl__judge__max_response": 9},
            ["config.rl.judge.opponents=8", "group_size - 1 = 7"],
        ),
        (
            {"rl__judge__name": "genrm", "rl__judge__max_prompt": 99, "rl__judge__refresh": 2}
            | {"rl__judge__max_response": 9},
            ["config.rl.judge.refresh=2", "rl.judge.name='self_critique'", "nearest is 0"],
        ),
        (
            {"rl__judge__name": "self_critique", "rl__judge__max_prompt": 150, "rl__judge__refresh": 2}
            | {"rl__judge__max_response": 99, "rl__length": 200},
            ["config.rl.length=200", "max_prompt + max_response = 249"],
        ),
        (
            {"rl__objective__name": "crispo"},
            ["objective.name='crispo'", "one of cispo, grpo, dapo", "nearest is cispo"],
        ),
        ({"optimizer__name": "muonclop"}, ["optimizer.name='muonclop'", "nearest is muonclip"]),
        ({"rl__budgets": ("gcd=32", "aiw=many")}, ["config.rl.budgets", "aiw='many'", "gcd=32"]),
        ({"tasks__weights": ("gcd=two",)}, ["config.tasks.weights", "'gcd=two' is no entry", "gcd=2"]),
        ({"tasks__schedule": ("gdc=0:1",)}, ["config.tasks.weights", "no 'gdc'", "nearest is 'gcd'"]),
        (
            {"tasks__names": ("gcd",), "tasks__schedule": ("gcd=1:0",)},
            ["config.tasks.weights", "no task weighs anything at the last step"],
        ),
        ({"rl__budgets": ("gdc=32",)}, ["config.rl.budgets", "no 'gdc'", "nearest is 'gcd'"]),
        ({"rl__minibatches": 33}, ["config.rl.minibatches=33", "prompts=32"]),
        ({"model__kv_heads": 3}, ["config.model", "heads=4", "kv_heads=3"]),
        ({"model__vocab": 64}, ["config.model.vocab=64", "tokenizer 'tiny'"]),
        ({"mesh__expert": 3}, ["config.mesh.expert=3", "experts=8"]),
        ({"mesh__data": 0}, ["config.mesh.data=0"]),
        ({"stages": ("sft", "lr")}, ["config.stages", "no 'lr'", "nearest is 'rl'"]),
        ({"stages": ("rl", "rl")}, ["'rl' is named 2 times"]),
        ({"stages": ("reward_model",), "reward_model__rows": 17}, ["config.reward_model.rows=17", "multiple"]),
        ({"stages": ("dpo",), "dpo__length": 512}, ["config.dpo.length=512", "max_length=256"]),
        ({"dpo__data": "tfds:NAME"}, ["config.dpo.data='tfds:NAME'", "one of tasks, jsonl:PATH"]),
        ({"reward_model__data": "jsonl:/no/such"}, ["config.reward_model.data", "no such file"]),
        ({"dpo__kind": "robust", "dpo__label_smoothing": 0.5}, ["config.dpo.label_smoothing=0.5", "robust"]),
        ({"rl__reward__model_weight": 1.0}, ["model_weight=1.0", "no 'reward_model' before it"]),
        ({"rl__reward__domains": ("logic.model=1",)}, ["no 'reward_model' before it"]),
        ({"rl__reward__domains": ("logik.verifier=1",)}, ["no 'logik'", "nearest is 'logic'"]),
        ({"rl__reward__domains": ("logic=1",)}, ["config.rl.reward.domains", "an example is 'logic.model=0.5'"]),
        ({"stages": ()}, ["config.stages", "nothing to do"]),
        ({"sft__data": "json:a"}, ["config.sft.data='json:a'", "nearest is jsonl:PATH"]),
        ({"sft__data": "jsonl:"}, ["config.sft.data='jsonl:'", "jsonl:PATH"]),
        ({"sft__data": ("tasks", "json:a")}, ["config.sft.data='json:a'", "nearest is jsonl:PATH"]),
        ({"sft__data": "taks"}, ["config.sft.data='taks'", "nearest is tasks"]),
        ({"sft__data": ()}, ["config.sft.data: no data is named"]),
        ({"sft__data": ("tasks", 3)}, ["config.sft.data", "tuple of names"]),
        ({"tokenizer": "nowhere/tiny.model"}, ["config.tokenizer='nowhere/tiny.model'", "no such file"]),
        ({"sft__steps": -1}, ["config.sft.steps=-1", "at least 0"]),
        ({"rl__promote_at": 1.5}, ["config.rl.promote_at=1.5", "at most 1.0"]),
        ({"optimizer__epsilon": float("nan")}, ["config.optimizer.epsilon=nan", "finite"]),
        ({"precision__compute": "float16"}, ["'float16'", "nearest is bfloat16"]),
    ],
)
def test_one_mistake_is_one_sentence(change, words):
    found = problems(**change)
    assert len(found) == 1 and "\n" not in found[0]
    for word in words:
        assert word in found[0]


@pytest.mark.parametrize(
    "tree, words",
    [
        ({"model": {"hiden": 3}}, ["config.model.hiden", "nearest is config.model.hidden", "kv_heads"]),
        ({"learning_rate": 1.0}, ["config.learning_rate", "optimizer.learning_rate", "stages"]),
        ({"sfd": {"steps": 1}}, ["config.sfd", "nearest is config.sft ("]),
        ({"sft": 3}, ["config.sft=3", "section"]),
        ({"sft": {"steps": True}}, ["config.sft.steps=True", "expected int, not bool"]),
        ({"sft": {"steps": "3"}}, ["config.sft.steps='3'", "expected int, not str"]),
        ({"optimizer": {"beta1": None}}, ["beta1=None", "expected float"]),
        ({"stages": ("sft", 3)}, ["config.stages", "tuple of names"]),
    ],
)
def test_keys_and_types(tree, words):
    _, found = validate.read(tree)
    assert len(found) == 1
    for word in words:
        assert word in found[0]


def test_all_mistakes_are_told_at_once():
    tree = {"seed": -1, "sed": 1, "sft": {"rows": 17, "microbatch_rows": 16, "data": "csv:x"}, "rl": {"length": "long"}}
    with pytest.raises(validate.InvalidRecipe) as caught:
        validate.recipe_from(tree)
    assert len(caught.value.problems) == 5
    assert str(caught.value).splitlines() == list(caught.value.problems)


def test_a_rule_is_not_judged_on_a_field_that_is_bad_by_itself():
    assert len(problems(sft__microbatch_rows=0, sft__rows=17)) == 1


def test_whole_numbers_stand_for_floats_and_lists_for_tuples():
    recipe = validate.recipe_from({"rl": {"objective": {"cispo": {"max_ratio": 4}}}, "stages": ["sft"]})
    ratio = recipe.rl.objective.cispo.max_ratio
    assert ratio == 4.0 and isinstance(ratio, float)
    assert recipe.stages == ("sft",)


def test_unknown_task_names_the_nearest(monkeypatch):
    tasks = types.SimpleNamespace(TASKS=("gcd", "chain_sum"))
    monkeypatch.setitem(sys.modules, "posttrain_jax.data.tasks", tasks)
    (found,) = problems(tasks__names=("chain_sun", "gcd"))
    assert "no 'chain_sun'" in found and "nearest is 'chain_sum'" in found


def test_files(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.model").write_text("not a model")
    assert problems(sft__data=f"jsonl:{tmp_path}/train.jsonl") == []
    assert (
        "trian.jsonl is missing; the nearest there is train" in problems(sft__data=f"jsonl:{tmp_path}/trian.jsonl")[0]
    )
    assert "empty" in problems(sft__data=f"jsonl:{tmp_path}/empty.jsonl")[0]
    assert problems(sft__data=f"{tmp_path}/t*.jsonl") == problems(sft__data=["tasks", f"{tmp_path}/train.jsonl"]) == []
    (told,) = problems(sft__data=f"jsonl:{tmp_path}")  # both of its files
    assert f"config.sft.data='jsonl:{tmp_path}/empty.jsonl': the file is empty" in told
    assert "directory" in problems(dpo__data=f"jsonl:{tmp_path}")[0]
    assert "cannot be read as a tokenizer" in problems(tokenizer=f"{tmp_path}/broken.model")[0]


def test_a_name_without_a_place_may_be_a_file_or_folder(tmp_path, monkeypatch):
    (tmp_path / "chats").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "config.sft.data='chtas': must be" in problems(sft__data="chtas")[0]
    assert problems(sft__data="chtas")[0].endswith("the nearest is chats")
    assert problems(sft__data="taks")[0].endswith("the nearest is tasks")


def test_a_run_from_when_data_was_text_goes_on():
    saved = dataclasses.asdict(Recipe())
    for before, now in (("tasks", ("tasks",)), ("a.jsonl,b.jsonl", ("a.jsonl,b.jsonl",)), (["a", "b"], ("a", "b"))):
        saved["sft"]["data"] = before
        recipe = dataclasses.replace(Recipe(), sft=dataclasses.replace(Recipe().sft, data=now))
        assert validate.differences(saved, recipe) == []
    assert "config.sft.data" in validate.differences(saved, Recipe())[0]


def test_workdir(tmp_path):
    (tmp_path / "file").touch()
    assert validate.workdir_problem(tmp_path / "new" / "deep") is None
    assert "is a file" in validate.workdir_problem(tmp_path / "file" / "run")
    assert not (tmp_path / "new").exists()


def test_workdir_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(validate.os, "access", lambda path, mode: False)
    assert "no permission" in validate.workdir_problem(tmp_path / "run")


def test_differences_leave_upkeep_out():
    stored = json.loads(json.dumps(dataclasses.asdict(Recipe())))
    assert validate.differences(stored, Recipe()) == []
    stored["run"]["checkpoint_every"] = 1
    assert validate.differences(stored, Recipe()) == []
    stored["sft"]["steps"] = 1
    stored["gone"] = 2
    del stored["rl"]["prompts"]  # a key that a newer version brought, at its default
    assert validate.differences(stored, Recipe()) == [
        "config.gone was 2 and is now 'absent'",
        f"config.sft.steps was 1 and is now {Recipe().sft.steps}",
    ]


@given(st.sampled_from([path for path, _, _ in settings()]), st.integers(0, 60))
def test_a_key_that_lost_a_letter_leads_back_to_itself(path, position):
    position %= len(path)
    typed = path[:position] + path[position + 1 :]
    known = [known for known, _, _ in settings()]
    alike = [one for one in known if typed in {one[:i] + one[i + 1 :] for i in range(len(one))}]
    assume(alike == [path])  # "beta" is as near to beta1 as to beta2
    assert validate.nearest(typed, known) == path


def test_every_setting_has_help_and_a_sound_default():
    for path, kind, field in settings():
        assert field.metadata["help"], path
        assert type(field.default) is kind, path
    assert [path for path, _, _ in settings()] == list(flatten(dataclasses.asdict(Recipe())))


def test_sizes():
    recipe = Recipe()
    weights = 4 * recipe.model.parameters
    assert checkpoint_bytes(recipe) == 3 * weights  # weights and two moments
    assert training_bytes(recipe) == 6 * weights
    muon = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, name="muon"))
    assert checkpoint_bytes(muon) == 2 * weights + 8 * recipe.model.vocab * recipe.model.hidden
    about = describe(recipe)
    assert f"{recipe.sft.rows * recipe.sft.length:,} tokens" in about["stages"]
    assert f"{recipe.model.parameters:,}" in about["model"]
