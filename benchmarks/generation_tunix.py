"""How fast is generation, next to Tunix's sampler on the same weights and the same cores?

Tunix has none of the families here. Its Qwen3 mixture of experts differs from MiniMax-M2 in the norms of queries and
keys, in how much of a head is turned, and in the router's scores, all of which are data to our decoder: both sides hold
the tiny recipe's sizes in that form, with the same random weights, in float32.

First with a fixed length, greedily: every token of both must be equal at every batch size before anything is timed.
Then with lengths that are long-tailed: at temperature 1 one token in forty of the vocabulary ends a response, and four
times the batch is asked of both. Ours seats the next as one ends; Tunix's takes a batch at a time, until its longest
ends. Tokens that nobody asked for count nowhere. Both are timed in turns.

    pip install google-tunix
    python benchmarks/generation_tunix.py [--batches=1,8,64,256] [--prompt=32] [--new=64] [--repetitions=5]
"""

from __future__ import annotations

import dataclasses
from functools import partial

import measure

ENDS = 40  # one token in so many ends a response
LONGEST = 192  # tokens of a response where lengths are long-tailed
TIMES = 4  # how many batches are asked for there


def main() -> None:
    """Parity first, then timings."""
    parser = measure.parser(__doc__, "generation_tunix")
    parser.add_argument("--batches", default="1,8,64,256", help="batch sizes")
    parser.add_argument("--prompt", type=int, default=32, help="tokens in a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens generated for each, where the length is fixed")
    parser.add_argument("--repetitions", type=int, default=5, help="timed turns of each side")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores for both sides")
    options = parser.parse_args()
    measure.start(options.cores)
    import tunix_side
    from flax import nnx

    from posttrain_jax.models.decoder import unstack
    from posttrain_jax.stages.setup import make_model

    recipe = measure.recipe("tiny")
    arch = dataclasses.replace(recipe.model, rotary_dim=recipe.model.head_dim, **tunix_side.FORM)
    recipe = dataclasses.replace(recipe, model=arch)
    weights = nnx.state(make_model(recipe)())
    theirs = tunix_side.model(arch, dict(nnx.to_flat_state(unstack(weights, arch))))
    rows = []
    for batch in map(int, options.batches.split(",")):
        rows += [fixed(recipe, weights, theirs, batch, options), long_tailed(recipe, weights, theirs, batch, options)]
    measure.show(
        f"generation on {options.cores} cores, prompts of {options.prompt}: new tokens a second",
        ("batch", "lengths", "posttrain_jax", "Tunix", "ratio", "least", "slots busy"),
        [
            (r["batch"], r["lengths"], r["ours"]["median"], r["theirs"]["median"], r["ratio"]["median"])
            + (r["ratio"]["least"], r.get("busy", ""))
            for r in rows
        ],
    )
    measure.write(options.output, {"parameters": arch.parameters, "rows": rows})


def fixed(recipe, weights, qwen, batch: int, options) -> dict:
    """The same greedy tokens, then how fast."""
    import numpy as np
    import tunix_side
    from generation_ours import Ours

    prompts = _prompts(recipe, batch, options.prompt)
    words = [" ".join(map(str, prompt)) for prompt in prompts]
    ours = partial(Ours(recipe, weights, batch, options.prompt, options.new), prompts)
    sampler = tunix_side.sampler(qwen, options.prompt + options.new)
    theirs = partial(sampler, words, options.new, options.prompt, eos_tokens=[-1])

    mine, expected = np.stack(ours()), np.stack(theirs().tokens)
    if mine.shape != expected.shape or (mine != expected).any():
        raise SystemExit(f"batch {batch}: the greedy outputs differ at {np.argwhere(mine != expected)[:4].tolist()}")
    seconds = measure.in_turns({"ours": ours, "theirs": theirs}, options.repetitions)
    rates = {side: measure.rate(mine.size, spent) for side, spent in seconds.items()}
    ratio = measure.ratio(seconds["ours"], seconds["theirs"])
    return {"batch": batch, "lengths": "fixed", "equal_tokens": mine.size, **rates, "ratio": ratio}


def long_tailed(recipe, weights, qwen, batch: int, options) -> dict:
    """Responses that end by themselves, four times the batch."""
    import tunix_side
    from generation_ours import Ours

    stops = tuple(range(recipe.model.vocab // ENDS))
    prompts = _prompts(recipe, TIMES * batch, options.prompt)
    words = [" ".join(map(str, prompt)) for prompt in prompts]
    engine = Ours(recipe, weights, batch, options.prompt, LONGEST, stops)
    sampler = tunix_side.sampler(qwen, options.prompt + LONGEST)
    drawn: dict[str, list[int]] = {"ours": [], "theirs": []}

    def ours():
        drawn["ours"].append(sum(map(len, engine(prompts, temperature=1.0, seed=len(drawn["ours"])))))

    def theirs():
        ends = range(0, len(words), batch)
        said = {"eos_tokens": stops, "temperature": 1.0, "top_p": 1.0, "seed": len(drawn["theirs"])}
        found = [sampler(words[i : i + batch], LONGEST, options.prompt, **said).tokens for i in ends]
        drawn["theirs"].append(sum(min(len(tokens) + 1, LONGEST) for part in found for tokens in part))

    seconds = measure.in_turns({"ours": ours, "theirs": theirs}, options.repetitions)
    each = {  # seconds a token, for no two turns draw equally many
        side: [s / tokens for s, tokens in zip(spent, drawn[side][-len(spent) :], strict=True)]
        for side, spent in seconds.items()
    }
    rates = {side: measure.rate(1, spent) for side, spent in each.items()}
    busy = engine.busy(prompts, 1.0)
    ratio = measure.ratio(each["ours"], each["theirs"])
    return {"batch": batch, "lengths": "long-tailed", "tokens": drawn, "busy": busy, **rates, "ratio": ratio}


def _prompts(recipe, count: int, length: int):
    import numpy as np

    return np.random.default_rng(0).integers(0, recipe.model.vocab, (count, length))


if __name__ == "__main__":
    main()
