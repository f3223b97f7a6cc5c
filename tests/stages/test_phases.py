"""A run of several phases: two experts from the same start, and one model distilled from both; killed, it goes on."""

import dataclasses
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.chat import for_family
from posttrain_jax.data.tasks import problem
from posttrain_jax.errors import UserError
from posttrain_jax.models.decoder import abstract
from posttrain_jax.run import phases, validate
from posttrain_jax.run.recipe import Distill
from posttrain_jax.stages import distill, pipeline
from posttrain_jax.stages.setup import make_model, training_mesh
from posttrain_jax.stages.trained import newest_weights

PACE = {"learning_rate": 2e-2, "warmup_steps": 1}
STEPS = {"sft": 40, "numbers": 3, "bits": 3, "joined": 8}
TREE = {
    "model": dict(
        layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, rotary_dim=8, experts=4, experts_per_token=2,
        expert_ffn=32, max_length=128,
    ),
    "tasks": {"names": ("gcd", "count_bits"), "max_level": 0},
    "sft": dict(steps=40, rows=8, microbatch_rows=8, length=128, optimizer=PACE),
    "rollout": dict(slots=16, max_prompt=96, max_response=24, decode_chunk=8, prefill_batch=4),
    "rl": dict(
        steps=3, prompts=3, group_size=4, minibatches=1, length=128, microbatch_rows=4, max_rounds=2,
        optimizer={"learning_rate": 1e-3, "warmup_steps": 1},
    ),
    "distill": dict(steps=8, rows=4, microbatch_rows=4, length=128, prompts=40, samples=4, most=2,
        optimizer={"learning_rate": 5e-3, "warmup_steps": 1},
    ),
    "evaluation": {"problems": 8},
    "run": {"checkpoint_every": 1, "keep": 100},
    "stages": tuple(STEPS),
    "phases": {
        "numbers": {"kind": "rl", "start": "sft", "tasks": {"names": ("gcd",)}},
        "bits": {"kind": "rl", "start": "sft", "tasks": {"names": ("count_bits",)}},
        "joined": {"kind": "distill", "start": "sft", "distill": {"teachers": ("numbers", "bits")}},
    },
}  # fmt: skip
RECIPE = validate.recipe_from(TREE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of a run that nothing interrupted. Not to be changed."""
    workdir = tmp_path_factory.mktemp("phases") / "whole"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(RECIPE)))
    assert pipeline.run(RECIPE, workdir) == 0
    return workdir


def lines(workdir, stage):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["stage"] == stage]


def records(workdir):
    files = sorted((workdir / "phases" / "joined" / "answers").glob("*/*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def weights(workdir):
    """Those in the newest checkpoint of a directory."""
    _, shapes = abstract(make_model(RECIPE), training_mesh(RECIPE))
    return newest_weights(workdir, shapes).arrays


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def back_to(whole, copy, phase, step):
    """A copy of the run as a kill in a phase would have left it: only files that grow are longer."""
    shutil.copytree(whole, copy)
    (copy / "summary.json").unlink()
    names = list(STEPS)
    last = sum(STEPS[name] for name in names[: names.index(phase)]) + step
    for path in (copy / "checkpoints").iterdir():
        if int(path.name) > last:
            shutil.rmtree(path)
    return copy


@pytest.mark.slow
def test_every_phase_is_measured_and_told_under_its_name(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert list(summary["heldout"]) == ["base", *STEPS]
    for name, steps in STEPS.items():
        assert [line["step"] for line in lines(whole, name) if line["step"]] == list(range(1, steps + 1))
    stages = {json.loads(line)["stage"] for line in (whole / "samples.jsonl").read_text().splitlines()}
    assert stages == {"numbers", "bits"}
    report = (whole / "report.html").read_text()
    assert all(title in report for title in ("numbers: Reinforcement learning", "joined: Self-distillation"))
    assert sum(line["groups"] for line in lines(whole, "bits")) > 1, "otherwise nothing was learned"


@pytest.mark.slow
def test_experts_of_one_start_end_apart(whole):
    start, numbers, words = (weights(whole / "phases" / name) for name in ("sft", "numbers", "bits"))
    assert not same(start, numbers) and not same(start, words) and not same(numbers, words)
    assert same(weights(whole), weights(whole)) and not same(weights(whole), start)


@pytest.mark.slow
def test_the_second_expert_knows_nothing_of_the_first(whole, tmp_path):
    """Without the first it is, to the bit, the same; so it began where the recipe says."""
    alone = dataclasses.replace(RECIPE, stages=("sft", "bits"))
    other = back_to(whole, tmp_path / "other", "sft", STEPS["sft"])
    assert pipeline.run(alone, other) == 0
    assert lines(other, "bits") == lines(whole, "bits")
    assert same(weights(other), weights(whole / "phases" / "bits"))


@pytest.mark.slow
@pytest.mark.parametrize("phase, step", [("bits", 2), ("joined", 2)])
def test_killed_in_a_later_phase_it_ends_the_same_to_the_bit(whole, tmp_path, phase, step):
    other = back_to(whole, tmp_path / "other", phase, step)
    if phase == "bits":  # before the experts were asked
        shutil.rmtree(other / "phases" / "joined")
        shutil.rmtree(other / "phases" / "bits")
    assert pipeline.run(RECIPE, other) == 0
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (other / name).read_bytes() == (whole / name).read_bytes()
    assert records(other) == records(whole)
    assert same(weights(other), weights(whole))


@pytest.mark.slow
def test_killed_while_experts_answer_only_what_is_missing_is_answered_again(whole, tmp_path, monkeypatch):
    other = back_to(whole, tmp_path / "other", "bits", STEPS["bits"])
    folder = other / "phases" / "joined" / "answers" / "bits"
    files = sorted(folder.iterdir())
    assert len(files) > 2
    files[-1].unlink()
    asked = []
    generate = pipeline.Engine.generate

    def counting(self, weights, prompts, *more, samples=1, **others):
        asked.extend([samples] * len(prompts))
        return generate(self, weights, prompts, *more, samples=samples, **others)

    monkeypatch.setattr(pipeline.Engine, "generate", counting)
    assert pipeline.run(RECIPE, other) == 0
    assert asked.count(4) == 8, "one chunk of 16 slots, filled four times by 8 prompts or fewer"
    assert records(other) == records(whole)
    assert (other / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_only_right_answers_are_kept_with_who_gave_them(whole):
    chat, found = for_family("minimax_m2"), records(whole)
    assert {record["teacher"] for record in found} == {"numbers", "bits"}
    for record in found:
        task = {"numbers": "gcd", "bits": "count_bits"}[record["teacher"]]
        asked = problem(task, record["level"], record["index"], seed=RECIPE.tasks.seed)
        assert record["prompt"] == asked.question and record["task"] == task and record["reward"] == 1.0
        said = chat.parse(record["response"])["content"].strip()
        if task == "gcd":
            assert int(said) == math.gcd(*map(int, re.findall(r"\d+", asked.question)))
        else:
            assert int(said) == int(re.findall(r"\d+", asked.question)[-1]).bit_count()
        ids, trained = record["token_ids"], record["trained"]
        assert len(ids) == len(trained) and sum(trained) == record["tokens"]
        assert chat.tokenizer.decode([t for t, mine in zip(ids, trained, strict=True) if mine]) == record["response"]
    by_prompt = [(record["teacher"], record["level"], record["index"]) for record in found]
    assert max(by_prompt.count(each) for each in by_prompt) <= 2
    (told_first, told_second) = [line for line in lines(whole, "joined") if line["step"] == 0]
    assert told_first["kept/numbers"] + told_second["kept/bits"] == len(found)


@pytest.mark.slow
def test_fine_tuning_makes_the_kept_answers_likelier(whole):
    graph, _ = abstract(make_model(RECIPE), training_mesh(RECIPE))
    found = records(whole)[:32]

    def likelihood(state):
        model, total = nnx.merge(graph, state), 0.0
        for record in found:
            ids = record["token_ids"] + [0] * (128 - len(record["token_ids"]))
            logprobs = jax.nn.log_softmax(model(jnp.array([ids]))[0])
            for i, mine in enumerate(record["trained"]):
                total += float(logprobs[i - 1, ids[i]]) if mine else 0.0
        return total

    assert likelihood(weights(whole)) > likelihood(weights(whole / "phases" / "sft")) + 1


class Silent:
    """An engine that is asked for an answer and has none."""

    limits, banks = type("Limits", (), {"slots": 8, "max_prompt": 96})(), 1

    def generate(self, weights, prompts, key, *, samples, temperature):
        from posttrain_jax.rollout.request import Completion

        return [[Completion(np.array([1], np.int32), np.zeros(1, np.float32), "length")] * samples for _ in prompts]


def test_a_teacher_without_a_right_answer_ends_the_run(tmp_path):
    teacher = phases.of(RECIPE)[1]
    asking = distill.answer(
        Distill(prompts=4, samples=2), teacher, Silent(), lambda: None, for_family("minimax_m2"), tmp_path, 0
    )
    with pytest.raises(UserError, match="'numbers' gave no right response to 4 prompts.*distill.prompts"):
        list(asking)


@pytest.mark.parametrize(
    "changes, kept",
    [
        ({}, True),
        ({"correct": False}, False),
        ({"well_formed": False}, False),
        ({"infrastructure": True}, False),
        ({"finish": "length"}, False),
        ({"finish": "repetition"}, False),
        ({"finish": "done"}, True),
    ],
)
def test_what_counts_as_right(changes, kept):
    told = {"correct": True, "well_formed": True, "infrastructure": False, "finish": "stop"} | changes
    response = type("Response", (), {"finish": told.pop("finish"), "verdict": type("Verdict", (), told)})
    assert distill.is_right(response) is kept
