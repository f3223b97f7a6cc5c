"""configs/hybrid.py: sound at its scales, and made of the pieces that its docstring argues for."""

import runpy
from pathlib import Path

import pytest

from posttrain_jax.models import minimax_m2
from posttrain_jax.run import validate

CONFIG = Path(__file__).parents[2] / "configs" / "hybrid.py"


@pytest.mark.parametrize("scale, model", [("tiny", minimax_m2.TINY), ("full", minimax_m2.FULL)])
def test_every_scale_is_valid_and_has_the_pieces_that_are_argued_for(scale, model):
    found = validate.recipe_from(runpy.run_path(str(CONFIG))["get_config"](scale))
    assert (found.name, found.scale, found.model, found.stages) == ("hybrid", scale, model, ("sft", "rl"))
    assert (found.optimizer.name, found.rl.objective.name, found.rl.effort) == ("muonclip", "cispo", "failure")
    assert (found.rl.objective.advantages, found.rl.objective.aggregation) == ("batch", "prompt_mean")
    assert found.rl.retire_at == 0.9
    argued = CONFIG.read_text().split('"""')[1]
    assert all(word in argued for word in ("MuonClip", "CISPO", "batch's deviation", "prompt", "1 − p", "retired"))


def test_an_unknown_scale_names_the_scales():
    with pytest.raises(ValueError, match="'huge'.*tiny, full"):
        runpy.run_path(str(CONFIG))["get_config"]("huge")
