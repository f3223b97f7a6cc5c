"""How fast is an SFT update, next to a plain PyTorch loop on transformers' own model?

Both sides hold the same weights (written by posttrain_jax.hf.save) and see the same batches: random tokens, one
sequence to a row, every position trained on, so there is no packing from which only we would gain. Both run float32,
the same gradient clipping and the same AdamW. A parity gate comes first: the losses of the first updates must agree,
and so must the change of the weights at the first one. The PyTorch loop uses the fused AdamW, the attention and expert
implementations that a trial finds fastest, and no data loader. Two sizes: the recipe's tiny model, and one of 8 million
weights.

    python benchmarks/sft_update.py [--repetitions=10] [--updates=2] [--sizes=tiny,8M]
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import measure

GATED_UPDATES = 5
LOSS_TOLERANCE = 1e-3  # difference of the losses, which lie near 7; five updates spread the rounding
CHANGE_TOLERANCE = 1e-2  # |difference of the changes| / |change|; Adam's first one is little but the gradient's signs


def main() -> None:
    """Both sizes, one after the other."""
    parser = measure.parser(__doc__, "sft_update")
    parser.add_argument("--sizes", default="tiny,8M", help="models, of tiny and 8M")
    parser.add_argument("--updates", type=int, default=2, help="updates in a timed turn")
    parser.add_argument("--repetitions", type=int, default=10, help="timed turns of each side")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores for both sides")
    options = parser.parse_args()
    measure.start(options.cores)
    import torch

    torch.set_num_threads(options.cores)
    results = [compare(size, options) for size in options.sizes.split(",")]
    measure.show(
        f"SFT update: {results[0]['rows']} rows of {results[0]['length']}, {options.cores} cores, tokens a second",
        ("model", "weights", "posttrain_jax", "transformers", "ratio", "transformers' settings"),
        [
            (r["size"], r["parameters"], *(r[side]["median"] for side in ("ours", "theirs", "ratio")), r["settings"])
            for r in results
        ],
    )
    measure.write(options.output, {"sizes": results})


def recipe_of(size: str):
    """The tiny recipe with constant learning rate, at a size."""
    recipe = measure.recipe("tiny", "sft.optimizer.warmup_steps=0", "sft.optimizer.final_ratio=1.0")
    if size == "tiny":
        return recipe
    wider = dict(layers=4, hidden=256, heads=8, kv_heads=2, head_dim=32, experts=8, expert_ffn=288)
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **wider))


def compare(size: str, options) -> dict:
    """Parity, then timings, of one size; ends the script where the sides disagree."""
    import numpy as np
    import reference
    from flax import nnx

    from posttrain_jax import hf
    from posttrain_jax.stages.setup import make_model

    recipe = recipe_of(size)
    sft, arch = recipe.sft, recipe.model
    draw = np.random.default_rng(0).integers(0, arch.vocab, (GATED_UPDATES, sft.rows, sft.length + 1), np.int32)
    model = make_model(recipe)()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hf.save(model, folder)
        start = nnx.to_pure_dict(nnx.state(model))
        best, trials = reference.fastest(
            folder, lambda model: Torch(model, sft, recipe.optimizer).update(draw[0]), reference.EXPERTS_IN_TRAINING
        )
        theirs = Torch(reference.load(folder, *best), sft, recipe.optimizer)
        ours = Ours(recipe, model)

        losses = []
        for number, tokens in enumerate(draw):
            losses.append((float(ours.update(tokens)), theirs.update(tokens)))
            if number == 0:
                theirs.model.save_pretrained(folder / "after")
                after = nnx.to_pure_dict(nnx.state(hf.load(folder / "after")))
                change = difference(nnx.to_pure_dict(ours.state.weights), after, start)
    apart = max(abs(a - b) for a, b in losses)
    if apart > LOSS_TOLERANCE or change > CHANGE_TOLERANCE:
        raise SystemExit(f"{size}: the sides disagree: losses {losses}, relative difference of the change {change:.2g}")

    def turn(side):
        for number in range(options.updates):
            value = side.update(draw[number % GATED_UPDATES])
        return float(value)

    seconds = measure.in_turns({"ours": lambda: turn(ours), "theirs": lambda: turn(theirs)}, options.repetitions)
    tokens = options.updates * sft.rows * sft.length
    return {
        "size": size,
        "parameters": arch.parameters,
        "rows": sft.rows,
        "length": sft.length,
        "losses": losses,
        "difference_of_change": change,
        "ours": measure.rate(tokens, seconds["ours"]),
        "theirs": measure.rate(tokens, seconds["theirs"]),
        "ratio": measure.ratio(seconds["ours"], seconds["theirs"]),
        "settings": f"{best[0]} attention, {best[1]} experts",
        "trials": trials,
    }


class Ours:
    """The compiled update of posttrain_jax's SFT stage."""

    def __init__(self, recipe, model):
        import jax
        from flax import nnx

        from posttrain_jax.parallel.mesh import make_mesh
        from posttrain_jax.stages import sft
        from posttrain_jax.stages.optimizing import make_optimizing
        from posttrain_jax.stages.step import fresh_state, make_update

        graph, weights = nnx.split(model)
        optimizer = make_optimizing(recipe.sft.optimizer, recipe.sft.steps, recipe.model).optimizer
        self.cut = (recipe.sft.rows // recipe.sft.microbatch_rows, recipe.sft.microbatch_rows, recipe.sft.length)
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.state = fresh_state(weights, optimizer, self.mesh)
        self.compiled = make_update(optimizer, sft.make_loss(graph), self.state)

    def update(self, tokens):
        """One update on ``[rows, length + 1]`` tokens; the loss before it."""
        import numpy as np

        from posttrain_jax.parallel import mesh as meshes

        batch = {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "mask": np.ones_like(tokens[:, 1:], np.float32),
            "segment_ids": np.ones_like(tokens[:, 1:]),
            "positions": np.broadcast_to(np.arange(tokens.shape[1] - 1, dtype=np.int32), tokens[:, 1:].shape),
        }
        batch = {name: array.reshape(self.cut) for name, array in batch.items()}
        placed = meshes.put_batch(batch, self.mesh, batch_axis=1)
        self.state, metrics = self.compiled(self.state, placed, self.cut[0])
        return metrics["loss"]


class Torch:
    """The loop one writes around a transformers model."""

    def __init__(self, model, settings, optimizer):
        import torch

        pace, adam, named = settings.optimizer, optimizer, list(model.named_parameters())
        kept = [p for name, p in named if "norm" in name or p.ndim < 2]
        decayed = [p for name, p in named if not ("norm" in name or p.ndim < 2)]
        self.model, self.settings = model.train(), settings
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": pace.weight_decay}, {"params": kept, "weight_decay": 0.0}],
            lr=pace.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.epsilon,
            fused=True,
        )

    def update(self, tokens) -> float:
        """One update on ``[rows, length + 1]`` tokens; the loss before it."""
        import torch

        tokens = torch.from_numpy(tokens).long()
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for some in tokens.split(self.settings.microbatch_rows):
            logits = self.model(input_ids=some[:, :-1], use_cache=False).logits
            part = torch.nn.functional.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="sum")
            part = part / tokens[:, 1:].numel()
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.optimizer.clip_norm)
        self.optimizer.step()
        return loss


def difference(ours: dict, theirs: dict, start: dict) -> float:
    """|our weights - theirs| / |their change since the start|, over all weights together."""
    import jax
    import optax

    apart, change = (jax.tree.map(lambda a, b: a - b, *pair) for pair in ((ours, theirs), (theirs, start)))
    return float(optax.global_norm(apart) / optax.global_norm(change))


if __name__ == "__main__":
    main()
