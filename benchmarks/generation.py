"""How fast is generation, next to transformers' ``generate`` on the same weights and the same cores?

One set of random MiniMax-M2 weights at the recipe's tiny scale is written by posttrain_jax.hf.save and loaded by
transformers, which runs with the attention and expert implementations and the kind of cache that a trial finds fastest
at each batch size. The engine has as many slots as a batch has prompts, and the recipe's banks and other settings.

First both decode greedily in float32 with a key/value cache, prompts of equal length, stop tokens off: every token of
both must be equal at every batch size before anything is timed. Then lengths are long-tailed: at temperature 1 one
token in forty of the vocabulary ends a response, and four times the batch is asked of both. The engine seats the next
as one ends; ``generate`` takes a batch at a time, until its longest ends. Both are timed in turns.

    python benchmarks/generation.py [--batches=1,8,64,256] [--prompt=32] [--new=64] [--repetitions=5]
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import measure

ENDS = 40  # one token in so many ends a response
LONGEST = 192  # tokens of a response where lengths are long-tailed
TIMES = 4  # how many batches are asked for there


def main() -> None:
    """Parity first, then timings."""
    parser = measure.parser(__doc__, "generation")
    parser.add_argument("--batches", default="1,8,64,256", help="batch sizes")
    parser.add_argument("--prompt", type=int, default=32, help="tokens in a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens generated for each, where the length is fixed")
    parser.add_argument("--repetitions", type=int, default=5, help="timed turns of each side")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores for both sides")
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts")
    options = parser.parse_args()
    measure.start(options.cores)

    import torch
    from flax import nnx

    from posttrain_jax import hf
    from posttrain_jax.stages.setup import make_model

    torch.set_num_threads(options.cores)
    recipe = measure.recipe("tiny", f"seed={options.seed}")
    model = make_model(recipe)()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        hf.save(model, folder)
        for size in map(int, options.batches.split(",")):
            theirs = Theirs(Path(folder), options, _prompts(recipe, size, options))
            results.append(fixed(recipe, nnx.state(model), theirs, size, options))
            results.append(long_tailed(recipe, nnx.state(model), theirs, size, options))

    measure.show(
        f"generation: prompts of {options.prompt}, {options.cores} cores, new tokens a second",
        ("batch", "lengths", "posttrain_jax", "transformers", "ratio", "ratios of turns", "busy", "its settings"),
        [
            (r["batch"], r["lengths"], r["ours"]["median"], r["theirs"]["median"], r["ratio"]["median"], spread(r))
            + (r.get("busy", ""), r["settings"])
            for r in results
        ],
    )
    facts = {"parameters": recipe.model.parameters, "prompt": options.prompt, "new": options.new}
    measure.write(options.output, {**facts, "batches": results})


class Theirs:
    """transformers' model in the settings that are fastest for these prompts."""

    def __init__(self, folder: Path, options, prompts):
        import reference

        self.options = options
        work = lambda model: self._generate(model, prompts, "dynamic", options.new, [])  # noqa: E731
        (attention, experts), trials = reference.fastest(folder, work)
        self.model = reference.load(folder, attention, experts).eval()
        run = partial(self._generate, self.model, prompts, new=options.new, stops=[])
        caches = {cache: partial(run, cache=cache) for cache in ("dynamic", "static")}
        seconds = {cache: min(spent) for cache, spent in measure.in_turns(caches, 3).items()}
        self.cache = min(seconds, key=seconds.__getitem__)
        self.settings = f"{attention} attention, {experts} experts, {self.cache} cache"
        self.trials = {**trials, **{f"{cache} cache": spent for cache, spent in seconds.items()}}

    def __call__(self, prompts, new: int, stops=()):
        """What it says to each prompt, padded to the longest with token 0."""
        return self._generate(self.model, prompts, self.cache, new, list(stops))

    def _generate(self, model, prompts, cache, new, stops):
        import torch

        inputs = torch.from_numpy(prompts)
        drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "eos_token_id": stops} if stops else {}
        with torch.inference_mode():
            whole = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                use_cache=True,
                cache_implementation=cache,
                disable_compile=True,
                max_new_tokens=new,
                pad_token_id=0,
                **(drawn or {"do_sample": False}),
            )
        return whole[:, prompts.shape[1] :].numpy()


def fixed(recipe, weights, transformers: Theirs, batch: int, options) -> dict:
    """The same greedy tokens, then how fast; ends the script where they differ."""
    import numpy as np
    from generation_ours import Ours

    prompts = _prompts(recipe, batch, options)
    ours = partial(Ours(recipe, weights, batch, options.prompt, options.new), prompts)
    theirs = partial(transformers, prompts, options.new)

    mine, expected = np.stack(ours()), theirs()
    if mine.shape != expected.shape or (mine != expected).any():
        raise SystemExit(f"batch {batch}: the greedy outputs differ at {np.argwhere(mine != expected)[:4].tolist()}")
    seconds = measure.in_turns({"ours": ours, "theirs": theirs}, options.repetitions)
    return {
        "batch": batch,
        "lengths": "fixed",
        "equal_tokens": int(mine.size),
        **{side: measure.rate(mine.size, spent) for side, spent in seconds.items()},
        "ratio": measure.ratio(seconds["ours"], seconds["theirs"]),
        "settings": transformers.settings,
        "trials": transformers.trials,
    }


def long_tailed(recipe, weights, transformers: Theirs, batch: int, options) -> dict:
    """Responses that end by themselves, four times the batch."""
    import numpy as np
    from generation_ours import Ours

    stops = tuple(range(1, recipe.model.vocab // ENDS + 1))  # 0 is what transformers pads with
    prompts = _prompts(recipe, TIMES * batch, options)
    engine = Ours(recipe, weights, batch, options.prompt, LONGEST, stops)
    drawn: dict[str, list[int]] = {"ours": [], "theirs": []}

    def ours():
        drawn["ours"].append(sum(map(len, engine(prompts, temperature=1.0, seed=len(drawn["ours"])))))

    def theirs():
        found = [transformers(prompts[i : i + batch], LONGEST, stops) for i in range(0, len(prompts), batch)]
        ended = [np.isin(part, stops).cumsum(axis=1) for part in found]
        drawn["theirs"].append(sum(int((count == 0).sum() + (count > 0).any(axis=1).sum()) for count in ended))

    seconds = measure.in_turns({"ours": ours, "theirs": theirs}, options.repetitions)
    each = {  # seconds a token, for no two turns draw equally many
        side: [s / tokens for s, tokens in zip(spent, drawn[side][-len(spent) :], strict=True)]
        for side, spent in seconds.items()
    }
    return {
        "batch": batch,
        "lengths": "long-tailed",
        "tokens": drawn,
        "busy": engine.busy(prompts, 1.0),
        **{side: measure.rate(1, spent) for side, spent in each.items()},
        "ratio": measure.ratio(each["ours"], each["theirs"]),
        "settings": transformers.settings,
    }


def _prompts(recipe, count: int, options):
    import numpy as np

    return np.random.default_rng(options.seed).integers(0, recipe.model.vocab, (count, options.prompt))


def spread(result: dict) -> str:
    """Least and largest ratio of a pair of turns."""
    return f"{result['ratio']['least']:.3g} to {result['ratio']['largest']:.3g}"


if __name__ == "__main__":
    main()
