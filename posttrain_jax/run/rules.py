"""The rules of a recipe that bind several fields, or a field and the disk. Imports no JAX."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from posttrain_jax.errors import UserError
from posttrain_jax.rewards import mixture
from posttrain_jax.run.nearest import nearest
from posttrain_jax.run.recipe import Recipe

STAGES = ("sft", "reward_model", "dpo", "distill", "rl")
PAIR_SPECS = ("tasks", "jsonl:PATH", "FILE.jsonl", "FILE.json")
DATA_SPECS = (*PAIR_SPECS, "tfds:NAME", "FOLDER", "*.jsonl")

GROUP = 32  # inputs that share a scale in INT4; `quant.int4` needs JAX, and a recipe is checked without


def broken(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """What binds several fields, or a field and the disk: (keys judged, problem) for each rule that is broken."""
    model, rl, rollout, mesh = recipe.model, recipe.rl, recipe.rollout, recipe.mesh
    longest = rollout.max_prompt + rollout.max_response
    prompt_and_response = ("rollout.max_prompt", "rollout.max_response")
    for problem in model.problems():
        yield ("model",), f"config.model: {problem}"
    yield from _name_rules(recipe)
    yield from _file_rules(recipe)
    yield from _reward_rules(recipe)
    for name in ("sft", *(stage for stage in ("reward_model", "dpo", "distill") if stage in recipe.kinds)):
        stage = getattr(recipe, name)
        if stage.rows % stage.microbatch_rows:
            yield (
                (f"{name}.rows", f"{name}.microbatch_rows"),
                f"config.{name}.rows={stage.rows}: not a multiple of"
                f" config.{name}.microbatch_rows={stage.microbatch_rows};"
                f" the nearest is {max(round(stage.rows / stage.microbatch_rows), 1) * stage.microbatch_rows}",
            )
        if stage.length > model.max_length:
            yield (
                (f"{name}.length", "model.max_length"),
                f"config.{name}.length={stage.length}: longer than the model's"
                f" config.model.max_length={model.max_length}",
            )
    if recipe.dpo.kind == "robust" and recipe.dpo.label_smoothing == 0.5:
        yield (
            ("dpo.label_smoothing", "dpo.kind"),
            "config.dpo.label_smoothing=0.5: half of the pairs wrong leaves config.dpo.kind='robust' nothing to learn;"
            " the nearest is 0.49",
        )
    if longest > model.max_length:
        yield (
            (*prompt_and_response, "model.max_length"),
            f"config.rollout: max_prompt={rollout.max_prompt} and max_response={rollout.max_response} make {longest}"
            f" tokens, more than config.model.max_length={model.max_length}",
        )
    if rl.length < longest:
        yield (
            ("rl.length", *prompt_and_response),
            f"config.rl.length={rl.length}: a row must hold config.rollout.max_prompt + max_response = {longest}",
        )
    if rl.overlong_buffer > rollout.max_response:
        yield (
            ("rl.overlong_buffer", "rollout.max_response"),
            f"config.rl.overlong_buffer={rl.overlong_buffer}: more than"
            f" config.rollout.max_response={rollout.max_response}",
        )
    cispo = rl.objective.cispo
    if cispo.min_ratio > cispo.max_ratio:
        yield (
            ("rl.objective.cispo.min_ratio", "rl.objective.cispo.max_ratio"),
            f"config.rl.objective.cispo.min_ratio={cispo.min_ratio}: above max_ratio={cispo.max_ratio} beside it",
        )
    if rollout.beside and (not rl.carry_over or rollout.sharded):
        yield (
            ("rollout.beside", "rollout.sharded", "rl.carry_over"),
            f"config.rollout.beside=True: needs rl.carry_over of at least 1 (it is {rl.carry_over}), and"
            f" rollout.sharded=False (it is {rollout.sharded})",
        )
    if rl.carry_over and recipe.rollout.sharded:
        yield (
            ("rl.carry_over", "rollout.sharded"),
            f"config.rl.carry_over={rl.carry_over}: not with config.rollout.sharded=True; the nearest is 0",
        )
    sampling = rl.sampling
    if sampling.final and sampling.plateau:
        yield (
            ("rl.sampling.final", "rl.sampling.plateau"),
            f"config.rl.sampling.plateau={sampling.plateau}: not with config.rl.sampling.final={sampling.final}; the"
            " nearest is 0",
        )
    if sampling.moves and rl.carry_over:
        yield (
            ("rl.carry_over", "rl.sampling"),
            f"config.rl.carry_over={rl.carry_over}: not with a temperature that moves (config.rl.sampling.final,"
            " config.rl.sampling.plateau); the nearest is 0",
        )
    if rollout.int4 or recipe.precision.qat == "int4":
        for name in ("hidden", "expert_ffn"):
            if getattr(model, name) % GROUP:
                yield (
                    (f"model.{name}", "rollout.int4", "precision.qat"),
                    f"config.model.{name}={getattr(model, name)}: no multiple of {GROUP}, and INT4"
                    f" (config.rollout.int4, config.precision.qat) has groups of {GROUP};"
                    f" the nearest is {max(round(getattr(model, name) / GROUP), 1) * GROUP}",
                )
    if rl.minibatches > rl.prompts:
        yield (
            ("rl.minibatches", "rl.prompts"),
            f"config.rl.minibatches={rl.minibatches}: more than the config.rl.prompts={rl.prompts} groups of a step",
        )
    yield from _judge_rules(recipe)
    if model.experts % mesh.expert:
        yield (
            ("mesh.expert", "model.experts"),
            f"config.mesh.expert={mesh.expert}: does not divide config.model.experts={model.experts}",
        )
    if mesh.data == 0:
        yield ("mesh.data",), "config.mesh.data=0: must be -1 (what is left) or at least 1"


def _judge_rules(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where the judge is, and whether its questions fit."""
    judge, longest = recipe.rl.judge, recipe.model.max_length
    if judge.endpoint.url and urlsplit(judge.endpoint.url).scheme not in ("http", "https"):
        good = f"http://{judge.endpoint.url.rpartition('://')[2]}"
        yield (
            ("rl.judge.endpoint.url",),
            f"config.rl.judge.endpoint.url={judge.endpoint.url!r}: must begin with http:// or https://, such as {good}",
        )
    if judge.endpoint.url and judge.name == "none":
        yield (
            ("rl.judge.endpoint.url", "rl.judge.name"),
            "config.rl.judge.endpoint.url is given and config.rl.judge.name is 'none': must be self_critique or genrm",
        )
    if judge.name == "self_critique" and judge.opponents >= recipe.rl.group_size:
        yield (
            ("rl.judge.opponents", "rl.group_size"),
            f"config.rl.judge.opponents={judge.opponents}: a response has at most config.rl.group_size - 1 ="
            f" {recipe.rl.group_size - 1}",
        )
    if judge.name != "none" and not judge.endpoint.url and judge.max_prompt + judge.max_response > longest:
        yield (
            ("rl.judge.max_prompt", "rl.judge.max_response", "model.max_length"),
            f"config.rl.judge: max_prompt={judge.max_prompt} and max_response={judge.max_response} make"
            f" {judge.max_prompt + judge.max_response} tokens, more than config.model.max_length={longest}",
        )

    if judge.refresh and (judge.name != "self_critique" or judge.endpoint.url or recipe.rl.debug != "none"):
        yield (
            ("rl.judge.refresh", "rl.judge.name", "rl.judge.endpoint.url", "rl.debug"),
            f"config.rl.judge.refresh={judge.refresh}: trains the policy as its own critic, so it needs"
            " config.rl.judge.name='self_critique' without an endpoint, and rl.debug='none'; the nearest is 0",
        )
    elif judge.refresh and recipe.rl.length < judge.max_prompt + judge.max_response:
        yield (
            ("rl.length", "rl.judge.refresh", "rl.judge.max_prompt", "rl.judge.max_response"),
            f"config.rl.length={recipe.rl.length}: with config.rl.judge.refresh a row must hold"
            f" config.rl.judge.max_prompt + max_response = {judge.max_prompt + judge.max_response}",
        )


def _name_rules(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """Names of stages and of tasks."""
    lists: list[tuple[str, tuple, tuple[str, ...]]] = [
        ("stages", recipe.stages, tuple(dict.fromkeys((*STAGES, *recipe.phases))))
    ]
    if recipe.tasks.names:
        from posttrain_jax.data import gym
        from posttrain_jax.data.tasks import TASKS  # imported when asked for: the generators are slow to load
        from posttrain_jax.environments.worlds import WORLDS, world

        elsewhere = [name for name in recipe.tasks.names if ":" in name]
        for name in elsewhere:
            try:
                world(name)
            except UserError as error:
                yield ("tasks.names",), f"config.{error}"
        generated = gym.names() if any(map(gym.is_gym, recipe.tasks.names)) else ()
        lists.append(("tasks.names", recipe.tasks.names, (*TASKS, *WORLDS, *elsewhere, *generated)))
    yield from _mixture_rules(recipe)
    if not recipe.stages:
        yield ("stages",), f"config.stages=(): nothing to do; name one or more of {', '.join(STAGES)}"
    budgets = [budget.partition("=") for budget in recipe.rl.budgets]
    for task, _, tokens in budgets:
        if not tokens.isdecimal() or int(tokens) < 1:
            yield (
                ("rl.budgets",),
                f"config.rl.budgets: {task}={tokens!r} is no budget; an example is gcd=32",
            )
    if budgets:
        from posttrain_jax.data import gym
        from posttrain_jax.data.tasks import TASKS

        own = tuple(filter(gym.is_gym, recipe.tasks.names))
        lists.append(("rl.budgets", tuple(task for task, _, _ in budgets), (*TASKS, *own)))
    for key, names, known in lists:
        for name in dict.fromkeys(names):
            if name not in known:
                good = nearest(name, known)
                yield (key,), f"config.{key}: no {name!r}; the nearest is {good!r} (all: {', '.join(known)})"
            if names.count(name) > 1:
                yield (key,), f"config.{key}: {name!r} is named {names.count(name)} times"


def _mixture_rules(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """Weights of tasks, and that some task weighs something at either end of the run."""
    if not (recipe.tasks.weights or recipe.tasks.schedule):
        return
    from posttrain_jax.data.curriculum import mixture
    from posttrain_jax.data.tasks import TASKS

    keys = "tasks.weights", "tasks.schedule"
    try:
        found = mixture(recipe.tasks.weights, recipe.tasks.schedule)
    except ValueError as error:
        yield keys, f"config.tasks.weights, config.tasks.schedule: {error}"
        return
    known = recipe.tasks.names or TASKS
    for name in found:
        if name not in known:
            good = nearest(name, known)
            yield keys, f"config.tasks.weights: no {name!r}; the nearest is {good!r} (all: {', '.join(known)})"
    for end, when in enumerate(("first", "last")):
        if not any(found.get(name, (1.0, 1.0))[end] for name in known):
            yield keys, f"config.tasks.weights: no task weighs anything at the {when} step"


def _data_rules(key: str, given: Sequence[str], specs: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The form of a specification of data, and its files."""
    from posttrain_jax.data import sources

    try:
        named = sources.parts(given) if specs is DATA_SPECS else given
    except UserError as error:
        yield (key,), f"config.{key}: {error}"
        return
    for spec in named:
        kind, _, rest = spec.partition(":")
        problem = None
        if file := sources.file_of(spec):
            problem = _file_problem(Path(file).expanduser())
        elif not (spec == "tasks" or (rest and any(known.startswith(f"{kind}:") for known in specs))):
            names = [known.partition(":")[0] for known in specs] + ([] if ":" in spec else os.listdir())
            good = nearest(kind, names)
            form = next((known for known in specs if known.partition(":")[0] == good), good)
            problem = f"must be one of {', '.join(specs)}; the nearest is {form}"
        if problem:
            yield (key,), f"config.{key}={spec!r}: {problem}"


def _reward_rules(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """What a reward is mixed of, and whether its model is there when it is asked."""
    settings = recipe.rl.reward
    sound = True
    for entry in settings.domains:
        from posttrain_jax.data.tasks import AREAS  # imported when asked for: the generators are slow to load
        from posttrain_jax.environments.worlds import WORLDS

        areas = sorted({*AREAS.values(), *WORLDS})
        try:
            domain, reward, _ = mixture.parse(entry)
        except ValueError as error:
            sound = False
            yield ("rl.reward.domains",), f"config.rl.reward.domains: {error}"
            continue
        for name, known in ((domain, areas), (reward, mixture.REWARDS)):
            if name not in known:
                good = nearest(name, known)
                yield (
                    ("rl.reward.domains",),
                    f"config.rl.reward.domains: no {name!r} in {entry!r}; the nearest is {good!r}"
                    f" (all: {', '.join(known)})",
                )
    entries = [mixture.parse(entry) for entry in settings.domains] if sound else []
    asked = settings.model_weight > 0 or any(name == "model" and weight > 0 for _, name, weight in entries)
    before = recipe.kinds[: recipe.kinds.index("rl")] if "rl" in recipe.kinds else ("reward_model",)
    if asked and "reward_model" not in before:
        yield (
            ("rl.reward", "stages"),
            f"config.rl.reward.model_weight={settings.model_weight}: the rl stage has no reward model, because"
            f" config.stages={recipe.stages} has no 'reward_model' before it",
        )


def _file_rules(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """Data and tokenizer: the form of the specification, and whether the file is there and is usable."""
    if recipe.sft.data != ("tasks",):
        yield from _data_rules("sft.data", recipe.sft.data, DATA_SPECS)
    for stage in ("reward_model", "dpo"):
        if (data := getattr(recipe, stage).data) != "tasks":
            yield from _data_rules(f"{stage}.data", (data,), PAIR_SPECS)
    from posttrain_jax.chat import FORMATS, tokenizer  # imported when asked for: --help needs none

    if recipe.tokenizer not in tokenizer.shipped():
        path = Path(recipe.tokenizer)
        problem = None if path.is_dir() else _file_problem(path)
        if problem:
            yield ("tokenizer",), f"config.tokenizer={recipe.tokenizer!r}: {problem}"
            return
    try:
        size = tokenizer.load(recipe.tokenizer, FORMATS[recipe.family].special_tokens).size
    except (UserError, OSError, RuntimeError, ValueError, KeyError) as error:
        detail = str(error).partition("\n")[0]
        yield ("tokenizer",), f"config.tokenizer={recipe.tokenizer!r}: cannot be read as a tokenizer ({detail})"
        return
    if size > recipe.model.vocab:
        yield (
            ("tokenizer", "model.vocab"),
            f"config.model.vocab={recipe.model.vocab}: the tokenizer {recipe.tokenizer!r} needs at least {size}",
        )


def _file_problem(path: Path) -> str | None:
    """Why a file cannot be read, or None."""
    if path.is_dir():
        return "is a directory, not a file"
    if not path.exists():
        beside = sorted(p.name for p in path.parent.iterdir() if p.is_file()) if path.parent.is_dir() else []
        hint = f"; the nearest in {path.parent} is {nearest(path.name, beside)}" if beside else ""
        return f"no such file{hint}"
    if not os.access(path, os.R_OK):
        return "no permission to read it"
    if path.stat().st_size == 0:
        return "the file is empty"
    return None
