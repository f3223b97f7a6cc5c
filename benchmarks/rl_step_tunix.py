"""How fast is an RL step, rollout and updates together, next to Tunix's GRPO?

The protocol is that of `rl_step.py`, with the weights of `generation_tunix.py`, which both sides can hold: the same
prompts, as many responses of the same fixed length at temperature 1, as many AdamW updates on them, in float32 on the
same cores, rewarded by the mean token number. Tunix drives its own loop; when it asks for its next prompts a step is
over, and ours makes one before it gets them, so both are timed in turns. A step counts prompt and completion tokens.

What differs is each side's own way: Tunix samples for one update after the other with weights from before the step,
pads every row to the longest prompt and response, takes no old log-probabilities, and clips as GRPO does.

    pip install google-tunix
    python benchmarks/rl_step_tunix.py [--steps=8] [--warmup=2] [--override=rl.prompts=8 ...]
"""

from __future__ import annotations

import dataclasses
import time

import measure


def main() -> None:
    """Tunix's training loop, with ours running whenever it asks for prompts."""
    parser = measure.parser(__doc__, "rl_step_tunix")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each side")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores for both sides")
    parser.add_argument("--override", action="append", default=[], help="key=value of the recipe; may be repeated")
    options = parser.parse_args()
    measure.start(options.cores)

    import jax
    import rl_step
    import tunix_side
    from flax import nnx

    from posttrain_jax.models.decoder import unstack
    from posttrain_jax.stages.setup import make_chat, make_model

    fixed = ("overlong_penalty=0.0", "repetition_window=0", "optimizer.warmup_steps=0", "optimizer.final_ratio=1.0")
    recipe = measure.recipe("tiny", *(f"rl.{each}" for each in fixed), *options.override)
    arch = dataclasses.replace(recipe.model, rotary_dim=recipe.model.head_dim, **tunix_side.FORM)
    recipe = dataclasses.replace(recipe, model=arch)
    rl, steps = recipe.rl, options.warmup + options.steps
    chat, model = make_chat(recipe), make_model(recipe)()
    prompts = rl_step.prompts_of(recipe, chat, steps * rl.prompts)
    qwen = tunix_side.model(arch, dict(nnx.to_flat_state(unstack(nnx.state(model), arch))))
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    tokens = []

    def batches():
        ours = rl_step.our_steps(recipe, chat, nnx.split(model), steps)
        before = None
        for step in range(steps + 1):
            between = time.perf_counter()
            if before is not None:
                seconds["theirs"].append(between - before)
            if step == steps:
                return
            made = next(ours)
            jax.block_until_ready(made.state)
            before = time.perf_counter()
            seconds["ours"].append(before - between)
            tokens.append(made.tokens)
            asked = prompts[step * rl.prompts : (step + 1) * rl.prompts]
            yield {"prompts": [" ".join(map(str, prompt)) for prompt in asked]}

    learner = tunix_side.learner(qwen, recipe, steps * rl.minibatches + 1)
    learner.train(batches())
    response, updates = recipe.rollout.max_response, learner.rl_cluster.actor_trainer.train_steps
    expected = [
        rl.group_size * sum(len(p) + response for p in prompts[i * rl.prompts : (i + 1) * rl.prompts])
        for i in range(steps)
    ]
    if tokens != expected or updates != steps * rl.minibatches:
        raise SystemExit(f"not the same work: {tokens} tokens here, {expected} asked; {updates} updates in Tunix")
    timed = {side: spent[options.warmup :] for side, spent in seconds.items()}
    mean = sum(expected[options.warmup :]) / options.steps
    result = {
        "parameters": arch.parameters,
        "tokens_per_step": expected,
        **{side: measure.rate(mean, spent) for side, spent in timed.items()},
        "ratio": measure.ratio(timed["ours"], timed["theirs"]),
        "recipe": {"rl": dataclasses.asdict(rl), "rollout": dataclasses.asdict(recipe.rollout)},
    }
    measure.show(
        f"RL step: {rl.prompts} x {rl.group_size} responses of {response} tokens, {rl.minibatches} updates",
        ("posttrain_jax tokens/s", "Tunix tokens/s", "ratio", "least"),
        [(result["ours"]["median"], result["theirs"]["median"], result["ratio"]["median"], result["ratio"]["least"])],
    )
    measure.write(options.output, result)


if __name__ == "__main__":
    main()
