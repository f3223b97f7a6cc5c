"""The reckoning for the attached device."""

import dataclasses

import pytest

from posttrain_jax.planning.calibrate import calibrate
from posttrain_jax.planning.work import work
from posttrain_jax.run.recipe import Recipe


def test_a_step_on_the_attached_device_is_estimated_and_measured(arch):
    plain = Recipe(model=dataclasses.replace(arch, hidden=64, expert_ffn=64))
    sft = dataclasses.replace(plain.sft, rows=8, microbatch_rows=4, length=128)
    recipe = dataclasses.replace(plain, sft=sft)
    lines = []
    told = calibrate(recipe, lines.append)
    assert len(lines) == 1 and told["device"] in lines[0]
    # what is computed is at least what the model asks for: padding and masked scores come on top
    assert work(recipe, "sft").flops < told["flops"] < 20 * work(recipe, "sft").flops
    assert told["bytes"] > 0 and told["estimated_seconds"] > 0 and told["measured_seconds"] > 0
    assert told["estimated_over_measured"] == pytest.approx(told["estimated_seconds"] / told["measured_seconds"])
