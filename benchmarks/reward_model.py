"""Held-out accuracy on real preference pairs: the reward model's stage beside a logistic regression on words.

    python benchmarks/reward_model.py --data=DIR [--pairs=hh_rlhf/harmless_a.jsonl.gz] [--steps=100]

Both learn from the same pairs and are judged on the same held-out ones, those that fit a row. The regression reads the
difference of two bags of words; the reward model starts from random weights.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import measure


def words(record: dict, name: str) -> Counter:
    """How often each word stands in an answer."""
    return Counter(word for message in record[name] for word in re.findall(r"\w+", message["content"].lower()))


def logistic(train: list[dict], test: list[dict], decay: float = 1e-3, steps: int = 300) -> float:
    """Accuracy of σ(w · (bag of the chosen - bag of the rejected)) with quadratic decay, by full-batch Adam."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    counts = Counter(word for record in train for name in ("chosen", "rejected") for word in words(record, name))
    index = {word: i for i, (word, n) in enumerate(counts.items()) if n > 1}
    index = {word: i for i, word in enumerate(index)}

    def features(records):
        found = np.zeros((len(records), len(index)), np.float32)
        for row, record in enumerate(records):
            for name, sign in (("chosen", 1), ("rejected", -1)):
                for word, n in words(record, name).items():
                    if word in index:
                        found[row, index[word]] += sign * n
        return found

    x, y, optimizer = features(train), features(test), optax.adam(1e-2)

    def loss(w):
        return -jax.nn.log_sigmoid(x @ w).mean() + decay * (w @ w)

    @jax.jit
    def step(w, moments):
        changes, moments = optimizer.update(jax.grad(loss)(w), moments)
        return optax.apply_updates(w, changes), moments

    w = jnp.zeros(x.shape[1])
    moments = optimizer.init(w)
    for _ in range(steps):
        w, moments = step(w, moments)
    return float(((np.sign(y @ np.asarray(w)) + 1) / 2).mean())


def main() -> None:
    parser = measure.parser(__doc__, "reward_model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", default="hh_rlhf/harmless_a.jsonl.gz")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    measure.start(options.cores)

    import dataclasses

    import jax

    from posttrain_jax.data import pairs, pipeline
    from posttrain_jax.models.decoder import abstract, materialise
    from posttrain_jax.parallel.mesh import make_mesh
    from posttrain_jax.stages import reward_model
    from posttrain_jax.stages.critic import with_critic
    from posttrain_jax.stages.optimizing import make_optimizing
    from posttrain_jax.stages.setup import make_chat, make_model
    from posttrain_jax.stages.step import fresh_state

    recipe = measure.recipe(
        "tiny",
        f"model.max_length={options.length}",
        f"reward_model.length={options.length}",
        f"reward_model.steps={options.steps}",
        "reward_model.rows=8",
        "reward_model.microbatch_rows=8",
        "reward_model.on_too_long=skip",
    )
    settings, chat, mesh = recipe.reward_model, make_chat(recipe), make_mesh(devices=jax.devices()[:1])
    train, heldout = (pairs.open(f"jsonl:{options.data / options.pairs}", split) for split in ("train", "heldout"))

    def fitting(source):
        records = [source[i] for i in range(len(source))]
        return [r for r in records if pairs.PAIRS.size(pairs.encode(chat, r)) <= settings.length]

    learned, judged = fitting(train), fitting(heldout)
    baseline = logistic(learned, judged)

    make = make_model(recipe)
    graph, shapes = abstract(make, mesh)
    optimizing = make_optimizing(settings.optimizer, settings.steps, recipe.model)
    state = fresh_state(with_critic(materialise(make, shapes)), optimizing.optimizer, mesh)
    batches = pipeline.batches(
        learned,  # pyright: ignore[reportArgumentType] a list is random access
        chat,
        rows=settings.rows,
        length=settings.length,
        seed=0,
        on_too_long="skip",
        kind=pairs.PAIRS,
        section="reward_model",
    )
    for step in reward_model.train(settings, optimizing, graph, state, batches, mesh, 0):
        state = step.state
    scorer = reward_model.Scorer(graph, settings.rows, settings.length, mesh)
    tokens = [pairs.encode(chat, record) for record in judged]
    ours = reward_model.accuracy(scorer, state.weights, tokens)
    measure.write(
        options.output,
        {
            "pairs": {"file": options.pairs, "train": len(learned), "heldout": len(judged)},
            "settings": dataclasses.asdict(settings),
            "accuracy": {"reward_model": ours, "bag_of_words": baseline},
        },
    )


if __name__ == "__main__":
    main()
