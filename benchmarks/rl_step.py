"""How fast is an RL step, rollout and updates together, next to TRL's GRPOTrainer with ``loss_type="cispo"``?

Both sides start from the same weights, take the same prompts in the same order, sample the same number of responses of
the same fixed length (stop tokens off, repetition stop off) at temperature 1, and make the same number of AdamW updates
on them, in float32 on the same cores. The reward is the mean token number of a response: cheap, and never equal within
a group, so no group is ever drawn again or dropped. TRL drives its own training loop; after each of its rollout batches
a callback lets our loop make one step, so both are measured in turns. A step counts prompt and completion tokens.

What differs is each side's own way: ours samples through its engine, takes the sampler's log-probabilities as old ones
and trains on packed rows; TRL samples through transformers' ``generate`` and computes the old log-probabilities in a
forward pass of its own, as it does whenever one rollout serves several updates. TRL runs without gradient
checkpointing or router balance loss, with fused AdamW, and with the attention and expert implementations that a trial
of one rollout and one backward pass finds fastest.

    python benchmarks/rl_step.py [--steps=8] [--warmup=2] [--override=rl.prompts=8 ...]
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from unittest import mock

import measure


def main() -> None:
    """TRL's training loop, with ours running in its callback."""
    parser = measure.parser(__doc__, "rl_step")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each side")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores for both sides")
    parser.add_argument("--override", action="append", default=[], help="key=value of the recipe; may be repeated")
    options = parser.parse_args()
    measure.start(options.cores)

    import reference
    import torch
    import trl_side
    from datasets import Dataset
    from flax import nnx
    from trl import GRPOTrainer

    from posttrain_jax import hf
    from posttrain_jax.stages.setup import make_chat, make_model

    torch.set_num_threads(options.cores)
    fixed = ("overlong_penalty=0.0", "repetition_window=0", "optimizer.warmup_steps=0", "optimizer.final_ratio=1.0")
    recipe = measure.recipe("tiny", *(f"rl.{each}" for each in fixed), *options.override)
    steps = options.warmup + options.steps
    chat, model = make_chat(recipe), make_model(recipe)()
    prompts = prompts_of(recipe, chat, steps * recipe.rl.prompts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hf.save(model, folder)
        best, trials = reference.fastest(folder, lambda model: trl_side.rollout_and_backward(model, recipe, prompts))
        arguments = trl_side.arguments(recipe, folder, steps)
        turns = trl_side.Turns(our_steps(recipe, chat, nnx.split(model), steps), recipe.rl.minibatches)
        trainer = GRPOTrainer(
            model=reference.load(folder, *best),
            reward_funcs=lambda completion_ids, **_: [sum(ids) / len(ids) for ids in completion_ids],
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": " ".join(map(str, prompt))} for prompt in prompts]),
            processing_class=trl_side.words(recipe.model.vocab),
            callbacks=[turns],
        )
        trainer.train()

    rl, response = recipe.rl, recipe.rollout.max_response
    expected = [
        rl.group_size * sum(len(p) + response for p in prompts[i * rl.prompts : (i + 1) * rl.prompts])
        for i in range(steps)
    ]
    updated = sum("grad_norm" in metrics for metrics in turns.metrics)
    if turns.tokens != expected or updated != steps or trainer.state.num_input_tokens_seen != sum(expected):
        raise SystemExit(
            f"the sides did not do the same work: {turns.tokens} tokens and {updated} steps with updates here, "
            f"{trainer.state.num_input_tokens_seen} tokens in TRL, expected {expected}"
        )
    timed = slice(options.warmup, None)
    ours, theirs = turns.ours[timed], turns.theirs[timed]
    tokens = sum(expected[timed]) / options.steps
    result = {
        "parameters": recipe.model.parameters,
        "tokens_per_step": expected,
        "ours": measure.rate(tokens, ours),
        "theirs": measure.rate(tokens, theirs),
        "ratio": measure.ratio(ours, theirs),
        "settings": f"{best[0]} attention, {best[1]} experts",
        "trials": trials,
        "recipe": {"rl": dataclasses.asdict(rl), "rollout": dataclasses.asdict(recipe.rollout)},
        "trl": arguments.to_dict(),
    }
    measure.show(
        f"RL step: {rl.prompts} x {rl.group_size} responses of {response} tokens, {rl.minibatches} updates",
        ("posttrain_jax tokens/s", "TRL tokens/s", "ratio", "TRL's settings"),
        [(result["ours"]["median"], result["theirs"]["median"], result["ratio"]["median"], result["settings"])],
    )
    measure.write(options.output, result)


class InOrder:
    """In the curriculum's place: every task in turn at level 0, whatever was solved."""

    def __init__(self, names):
        self.names = names

    def choose(self, draw: int):
        """(task, level, index) of the ``draw``-th prompt."""
        return self.names[draw % len(self.names)], 0, draw

    def observe(self, *_):
        """Learns nothing."""

    def state(self):
        """Remembers nothing."""
        return {}

    def buckets(self):
        """Tells nothing."""
        return {}


def prompts_of(recipe, chat, count: int) -> list[list[int]]:
    """The first prompts that our loop will draw."""
    from posttrain_jax.data import tasks
    from posttrain_jax.stages.answering import prompt_tokens

    order, found, draw = InOrder(recipe.tasks.names or tasks.TASKS), [], 0
    while len(found) < count:
        problem = tasks.problem(*order.choose(draw), split="train", seed=recipe.tasks.seed)
        prompt, draw = prompt_tokens(chat, recipe.tasks.system, problem.question), draw + 1
        if len(prompt) <= recipe.rollout.max_prompt:
            found.append(prompt)
    return found


def our_steps(recipe, chat, split, steps: int):
    """posttrain_jax's RL stage with the real engine; only the reward is another, and no token ends a response."""
    import jax

    from posttrain_jax.data import tasks
    from posttrain_jax.parallel.mesh import make_mesh
    from posttrain_jax.stages import answering, rl
    from posttrain_jax.stages.collecting import AtOnce
    from posttrain_jax.stages.optimizing import make_optimizing
    from posttrain_jax.stages.setup import make_engine
    from posttrain_jax.stages.step import fresh_state

    graph, weights = split
    judge, mesh = answering.judge, make_mesh(devices=jax.devices()[:1])

    def judged(problem, prompt, completion, message, **settings):
        trajectory = judge(problem, prompt, completion, message, **settings)
        return dataclasses.replace(trajectory, reward=float(completion.tokens.mean()))

    optimizing = make_optimizing(recipe.rl.optimizer, steps * recipe.rl.minibatches, recipe.model)
    settings, engine = dataclasses.replace(recipe.rl, steps=steps), make_engine(recipe, chat, stop_tokens=())
    order = InOrder(recipe.tasks.names or tasks.TASKS)
    with mock.patch.object(answering, "judge", judged):
        yield from rl.train(
            settings,
            optimizing,
            graph,
            fresh_state(weights, optimizing.optimizer, mesh),
            AtOnce(settings, recipe.tasks, engine, chat, order, jax.random.key(recipe.seed)),
            order,
            chat,
            rl.Preparation(settings, engine.limits.positions, engine.limits.max_response, mesh),
            None,
            start=0,
            draws=0,
            used=0,
            samples_per_step=0,
        )


if __name__ == "__main__":
    main()
