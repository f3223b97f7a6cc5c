"""configs/: the recipes of the other three families, each at its scales, with what its makers published."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from posttrain_jax.environments import worlds
from posttrain_jax.models import glm_4_6, kimi_k2, minimax_m1
from posttrain_jax.planning.chips import read_slice
from posttrain_jax.planning.search import divides, resolved
from posttrain_jax.run import phases, validate
from posttrain_jax.stages import setup

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = {
    "kimi_k2": (dataclasses.replace(kimi_k2.TINY, norm_eps=1e-5), kimi_k2.INSTRUCT),
    "glm_4_6": (glm_4_6.TINY, glm_4_6.GLM_4_6),
    "minimax_m1": (minimax_m1.TINY, minimax_m1.RELEASED),
}
SLICES = {"kimi_k2": "v5p:8x8x8", "glm_4_6": "v5p:4x8x8", "minimax_m1": "v5p:8x8x8"}  # those that the files name


def get_config(family, *scale):
    return runpy.run_path(str(CONFIGS / f"{family}.py"))["get_config"](*scale)


@pytest.mark.parametrize("family", MODELS)
def test_every_scale_is_valid(family):
    for scale, model in zip(("tiny", "full"), MODELS[family], strict=True):
        recipe = validate.recipe_from(get_config(family, scale))
        assert (recipe.name, recipe.family, recipe.scale) == (family, family, scale)
        assert dataclasses.replace(recipe.model, max_length=model.max_length) == model
        assert recipe.kinds[0] == "sft" and recipe.kinds[-1] == "rl"


@pytest.mark.parametrize("family", MODELS)
def test_tiny_is_the_default_and_an_unknown_scale_names_the_scales(family):
    assert get_config(family).to_dict() == get_config(family, "tiny").to_dict()
    with pytest.raises(ValueError, match="'huge'.*tiny, full"):
        get_config(family, "huge")


@pytest.mark.parametrize("family", MODELS)
def test_the_full_mesh_makes_its_slice_and_divides_rows_and_experts(family):
    recipe = validate.recipe_from(get_config(family, "full"))
    part = read_slice(SLICES[family])
    mesh = resolved(recipe.mesh, part.devices)
    assert mesh is not None and mesh.data == 1 and divides(recipe)
    text = (CONFIGS / f"{family}.py").read_text()
    assert f"{part.chips} chips of {part.kind}" in text


@pytest.mark.parametrize("scale", ["tiny", "full"])
def test_published_choices(scale):
    kimi, glm, m1 = (validate.recipe_from(get_config(family, scale)) for family in MODELS)
    assert (kimi.optimizer.name, kimi.optimizer.qk_clip_threshold) == ("muonclip", 100.0)
    assert kimi.rl.objective.name == "k2" and kimi.rl.objective.ptx_weight > 0
    assert (glm.rl.objective.name, glm.rl.objective.aggregation) == ("grpo", "token_mean")
    assert glm.rl.objective.kl_weight == 0
    experts = {phase.name: phase for phase in phases.of(glm)}
    assert [experts[name].start for name in ("reasoning", "calls", "general", "distill")] == ["sft"] * 4
    assert experts["agent"].start == "calls" and experts["calls"].kind == "sft"
    assert experts["distill"].teachers == ("reasoning", "agent", "general")
    assert experts["hard"].settings.group_size == 16 and glm.sft.direct_share == 0.5
    assert m1.rl.objective.name == "cispo" and m1.rl.objective.kl_weight == 0
    adam = m1.optimizer
    assert (adam.name, adam.beta1, adam.beta2, adam.epsilon) == ("adamw", 0.9, 0.95, 1e-15)


def test_full_lengths_are_those_of_the_reports():
    glm, m1 = (validate.recipe_from(get_config(family, "full")) for family in ("glm_4_6", "minimax_m1"))
    assert glm.rl.length == 64 * 1024 and m1.sft.length == m1.rl.length == 128 * 1024
    windows = [phase.recipe.rollout.max_response // 1024 for phase in phases.of(m1) if phase.kind == "rl"]
    assert windows == [40, 40, 48, 56, 64, 72, 80]


@pytest.mark.parametrize("scale", ["tiny", "full"])
def test_variants(scale):
    for variant, (qat, arch) in {
        "instruct": ("none", kimi_k2.INSTRUCT),
        "thinking": ("int4", kimi_k2.THINKING),
    }.items():
        kimi = validate.recipe_from(get_config("kimi_k2", f"{scale}-{variant}"))
        assert kimi.variant == variant and kimi.model.norm_eps == arch.norm_eps
        assert kimi.precision.qat == qat and kimi.rollout.int4 == (qat == "int4")
    dpo = validate.recipe_from(get_config("glm_4_6", f"{scale}-dpo"))
    assert dpo.kinds == ("sft", "rl", "sft", "rl", "dpo", "distill", "rl", "rl")


@pytest.mark.parametrize(("family", "phase", "declared"), [("kimi_k2", "tools", 15), ("glm_4_6", "calls", 40)])
def test_tiny_has_room_for_episodes_whose_tool_is_declared_in_few_tokens(family, phase, declared):
    recipe = validate.recipe_from(get_config(family, "tiny"))
    speaker = setup.make_chat(recipe)
    (phase,) = (each for each in phases.of(recipe) if each.name == phase)
    for level in range(recipe.tasks.max_level + 1):
        for index in range(100):
            record = worlds.demonstration("register", level, index, recipe.tasks.seed)
            whole = len(speaker.encode(record["messages"], record["tools"])[0])
            assert whole <= phase.settings.length <= recipe.model.max_length and whole <= recipe.rollout.max_prompt + 64
            assert whole - len(speaker.encode(record["messages"])[0]) <= declared


@pytest.mark.parametrize("family", ["kimi_k2", "glm_4_6"])
def test_an_unknown_variant_names_what_there_is(family):
    with pytest.raises(ValueError, match="'tiny-chat'.*each with -"):
        get_config(family, "tiny-chat")
