"""configs/minimax_m2.py: every scale is a sound recipe of the same architecture."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain_jax.models import minimax_m2
from posttrain_jax.run import validate

CONFIG = Path(__file__).parents[2] / "configs" / "minimax_m2.py"


@pytest.fixture(scope="module")
def get_config():
    return runpy.run_path(str(CONFIG))["get_config"]


@pytest.mark.parametrize(
    "scale, model", [("tiny", minimax_m2.TINY), ("small", minimax_m2.SMALL), ("full", minimax_m2.FULL)]
)
def test_every_scale_is_valid(get_config, scale, model):
    recipe = validate.recipe_from(get_config(scale))
    assert (recipe.name, recipe.scale, recipe.model) == ("minimax_m2", scale, model)
    assert recipe.kinds[0] == "sft" and recipe.kinds[-1] == "rl"
    assert (recipe.stages == ("sft", "rl")) == (scale == "tiny"), "the five-minute job has two stages"


def test_tiny_is_the_default_scale(get_config):
    assert get_config().to_dict() == get_config("tiny").to_dict()


def test_adamw_is_the_published_one_at_every_scale(get_config):
    """MiniMax-M1 (arXiv 2506.13585): betas .9 and .95, epsilon 1e-15; at full scale of what MuonClip leaves to it."""
    for scale, name in {"tiny": "adamw", "small": "adamw", "full": "muonclip"}.items():
        adam = get_config(scale).optimizer
        assert (adam.name, adam.beta1, adam.beta2, adam.epsilon) == (name, 0.9, 0.95, 1e-15)


def test_unknown_scale_names_the_scales(get_config):
    with pytest.raises(ValueError, match="'huge'.*tiny, tools, small, full"):
        get_config("huge")


def test_reading_a_recipe_loads_no_jax():
    code = f"import runpy, sys; runpy.run_path({str(CONFIG)!r})['get_config'](); print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
