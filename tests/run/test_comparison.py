"""posttrain_jax.run.comparison: what is compared, what is read of the runs, and the page that shows it."""

import dataclasses
import json
import runpy
from html.parser import HTMLParser
from pathlib import Path

import pytest

from posttrain_jax.errors import UserError
from posttrain_jax.run import phases, validate
from posttrain_jax.run.comparison import page, plan, published, results
from posttrain_jax.run.comparison.components import COMPONENTS, alike, phrases
from posttrain_jax.run.comparison.plan import Comparison
from posttrain_jax.run.recipe import Phases, Recipe, changed
from posttrain_jax.run.report import digest

CONFIGS = Path(__file__).parents[2] / "configs"
BASE = Recipe()
STAGED = changed(Recipe(name="staged"), {"optimizer": {"name": "muon"}, "rl": {"objective": {"name": "grpo"}}})
STAGED = dataclasses.replace(
    STAGED,
    stages=("sft", "expert", "distill", "easy", "hard"),
    phases=Phases(
        expert={"kind": "rl", "start": "sft", "tasks": {"names": ("gcd",)}},
        distill={"start": "sft", "distill": {"teachers": ("expert",)}},
        easy={"kind": "rl", "rl": {"steps": 10, "effort": "variance"}},
        hard={"kind": "rl", "rl": {"steps": 30, "effort": "failure", "group_size": 16}},
    ),
)


def comparison(workdir=Path("runs"), seeds=(0,), tokens=1001, **recipes):
    return Comparison(BASE, Path("runs/base"), workdir, recipes or {"a": BASE, "b": STAGED}, seeds, tokens, 10)


def recipe(name):
    return validate.recipe_from(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]("tiny"))


def test_the_last_phases_of_rl_are_compared_and_share_the_tokens_as_their_steps_are():
    run = comparison().run("b", 3)
    easy, hard = phases.of(run)
    assert run.stages == ("easy", "hard") and (run.seed, run.weights) == (3, "runs/base")
    assert (easy.recipe.rl.tokens, hard.recipe.rl.tokens) == (250, 751)
    assert (easy.recipe.rl.effort, hard.recipe.rl.effort) == ("variance", "failure")
    assert [p.recipe.rl.steps * p.recipe.rl.group_size * 32 >= p.recipe.rl.tokens for p in (easy, hard)] == [True] * 2
    assert hard.recipe.optimizer.name == "muon" and hard.recipe.tasks == BASE.tasks
    assert comparison().behind()["b"] == ["stage expert", "stage distill"]


def test_what_is_the_bases_and_what_is_the_recipes_own():
    changes = {"model": {"hidden": 32}, "tasks": {"max_level": 1}, "precision": {"qat": "int4"}}
    changes |= {"rl": {"prompts": 5, "reward": {"model_weight": 1.0}, "sampling": {"temperature": 0.7}}}
    other = changed(BASE, {**changes, "rollout": {"int4": True, "max_response": 32}})
    run = comparison(a=other).run("a", 0)
    (rl,) = (phase.recipe.rl for phase in phases.of(run))
    assert (run.model, run.tasks, rl.prompts, rl.reward.model_weight) == (BASE.model, BASE.tasks, BASE.rl.prompts, 0.0)
    assert (run.precision.qat, run.rollout.int4, rl.sampling.temperature) == ("int4", True, 0.7)
    assert run.rollout.max_response == BASE.rollout.max_response  # with which all are measured
    assert phases.of(run)[0].recipe.rollout.max_response == 32
    assert comparison(a=other).behind() == {"a": ["model", "tasks"]}


def test_recipes_that_do_here_what_another_does_are_not_run():
    named = dataclasses.replace(BASE, name="other", scale="small")
    found = comparison(Path("runs"), (0, 1), a=BASE, b=named, c=STAGED)
    assert found.twins() == {"b": "a"}
    assert [folder.name for folder in found.runs()] == ["a-seed0", "c-seed0", "a-seed1", "c-seed1"]
    assert found.folder("b", 1) == Path("runs/a-seed1")


def test_a_recipe_without_rl_and_one_that_the_base_cannot_carry_are_refused():
    with pytest.raises(UserError, match="b: config.stages=.*no rl"):
        comparison(a=BASE, b=dataclasses.replace(BASE, stages=("sft",))).runs()
    wide = changed(BASE, {"rl": {"minibatches": 99}})
    with pytest.raises(UserError, match="b on this base: config.rl.minibatches=99"):
        comparison(a=BASE, b=wide).runs()
    with pytest.raises(UserError, match="has no sft"):
        plan.base_run(dataclasses.replace(BASE, stages=("rl",)))


def test_every_recipe_of_the_project_can_be_compared():
    recipes = {path.stem: recipe(path.stem) for path in sorted(CONFIGS.glob("*.py"))}
    base = recipes["minimax_m2"]
    found = Comparison(base, Path("runs/base"), Path("runs"), recipes, (0,), 5000, 10)
    assert {folder.name for folder in found.runs()} >= {f"{name}-seed0" for name in ("kimi_k2", "glm_4_6")}
    assert plan.base_run(base).stages == ("sft",)


def test_components_are_told_by_phrases_and_those_alike_are_found():
    told = {name: phrases(comparison().run(name, 0)) for name in "ab"}
    assert set(told["a"]) == set(COMPONENTS)
    assert told["b"]["curriculum"].count(" → ") == 1 and told["b"]["updates"].startswith("8 responses")
    assert told["a"]["objective"] == "cispo (max_ratio 5)" and told["b"]["objective"].startswith("grpo (")
    assert told["a"]["advantages"] == "group, token_mean" and told["b"]["advantages"] == "group, sequence_mean"
    assert alike({"x": "p", "y": "q", "z": "p"}) == {"z": "x"}


def test_what_is_published_is_of_recipes_and_components_that_are_there():
    assert all((CONFIGS / f"{maker}.py").exists() for maker in published.PUBLISHED)
    for told in published.PUBLISHED.values():
        assert set(told) <= {*COMPONENTS, published.RESULT} and all(each.said and each.source for each in told.values())
    assert published.of("minimax_m2", "optimizer") == published.NOT_PUBLISHED
    assert published.of("my_recipe", "optimizer") is None


def left(folder, stages, steps, heldout=None):
    """What a run of these (stage, step, numbers) leaves."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"stages": stages}))
    lines = [json.dumps({"stage": stage, "step": step, **numbers}) for stage, step, numbers in steps]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"stage": "rl", "st')
    if heldout:
        (folder / "summary.json").write_text(json.dumps({"heldout": heldout, "per_task": {"rl": {"gcd": 1.0}}}))


def spent(tokens, reward, **more):
    return {"used_tokens": tokens, "sampled_tokens": 60.0, "trained_tokens": 40.0, "reward": reward, **more}


@pytest.fixture
def found(tmp_path):
    """Two seeds of `a`, one of them finished; `b` finished in two phases with one, not begun with the other."""
    steps = [("rl", 1, spent(100, 0.1)), ("rl", 2, spent(200, 0.3, heldout=0.4)), ("rl", 3, spent(300, 0.5))]
    left(tmp_path / "a-seed0", ["rl"], steps, {"base": 0.2, "rl": 0.6})
    left(tmp_path / "a-seed1", ["rl"], steps[:2])
    staged = [("easy", 1, spent(100, 0.2)), ("easy", 2, spent(150, 0.2)), ("hard", 1, spent(150, 0.4))]
    left(tmp_path / "b-seed0", ["easy", "hard"], staged, {"base": 0.2, "easy": 0.3, "hard": 0.5})
    return results.read(comparison(tmp_path, seeds=(0, 1)))


def test_numbers_are_of_finished_runs_and_phases_follow_each_other(found):
    a, b = found["recipes"]["a"], found["recipes"]["b"]
    assert [run["finished"] for run in a["runs"]] == [True, False]
    assert a["mean"]["heldout"] == {"mean": 0.6, "spread": None}
    assert a["mean"]["tokens"]["mean"] == b["mean"]["tokens"]["mean"] == 300.0
    assert b["curves"]["reward"]["tokens"][0] == 100 and b["curves"]["reward"]["tokens"][-1] == 300
    assert a["mean"]["reward"]["mean"] == 0.5 and a["mean"]["sampled_tokens"]["mean"] == 180.0
    # the curve of what is held out: .2 at 0, .4 at 200, .6 at 300; the weakest run ends with .5
    assert found["common_level"] == 0.5 and a["mean"]["tokens_to_common"]["mean"] == pytest.approx(250.0)
    assert b["mean"]["tokens_to_common"]["mean"] == pytest.approx(300.0)
    json.dumps(found, allow_nan=False)


def test_curves_of_seeds_are_averaged_where_all_of_them_are(found):
    curve = found["recipes"]["a"]["curves"]["reward"]
    assert curve["tokens"][0] == 100 and curve["tokens"][-1] == 200 and len(curve["values"]) == results.POINTS
    assert curve["values"][0] == pytest.approx(0.1) and curve["values"][-1] == pytest.approx(0.3)


def test_the_spread_is_that_of_a_sample():
    assert results._mean([1.0, 3.0, None]) == {"mean": 2.0, "spread": pytest.approx(2**0.5)}


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_every_component_with_what_is_published_and_runs_nothing(found, tmp_path):
    hostile = "<script>x</script>"
    found["components"]["objective"]["a"]["here"] = hostile
    text = page.write(tmp_path / "compare.html", found).read_text()
    shown = Elements(text)
    tags = [tag for tag, _ in shown.tags]
    assert "script" not in tags and "img" not in tags and hostile in shown.text and "{{" not in text
    assert all(component.title in shown.text for component in COMPONENTS.values())
    policy = next(attrs["content"] for tag, attrs in shown.tags if attrs.get("http-equiv"))
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert digest(style) in policy
    assert "as a" in shown.text and "2 of 4 runs" in shown.text
    lines = [attrs["class"] for tag, attrs in shown.tags if tag == "path"]
    assert lines.count("line0") == lines.count("line1") == 2  # reward and what is held out


def test_the_page_says_where_all_are_alike_and_where_nothing_is_published(tmp_path):
    recipes = {name: dataclasses.replace(BASE, name=name) for name in ("minimax_m2", "kimi_k2", "mine")}
    text = page.write(tmp_path / "compare.html", results.read(comparison(tmp_path, **recipes))).read_text()
    assert text.count("alike in all") == len(COMPONENTS)
    rows = [row for row in text.split("<tr>") if row.startswith("<td>minimax_m2")]
    assert any("not published" in row for row in rows)
    mine = [row for row in text.split("<tr>") if row.startswith("<td>mine")]
    assert mine and not any("not published" in row for row in mine)
