"""Are the kernels' CPU forms faster than their plain definitions, and a layer of experts than transformers'?

Forward and backward, float32, in turns. The definitions are token by token for lightning attention, every expert over
every token for routed experts, all logits at once for log-probabilities. The layer of experts is MiniMax-M2's, router
included, next to transformers' MiniMaxM2SparseMoeBlock with grouped_mm and the same weights; the loss and the gradient
of the input must agree first.

    python benchmarks/kernels_cpu.py [--repetitions=9]
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import measure

# tokens, hidden, width of an expert, experts, experts a token
LAYERS = {"tiny": (2048, 64, 48, 16, 2), "small": (2048, 256, 288, 8, 2), "wide": (1024, 768, 512, 32, 4)}


def main() -> None:
    """Every kernel at two sizes or three."""
    parser = measure.parser(__doc__, "kernels_cpu")
    parser.add_argument("--repetitions", type=int, default=9, help="timed turns of each side")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores for all sides")
    options = parser.parse_args()
    measure.start(options.cores)
    import torch

    torch.set_num_threads(options.cores)
    rows = []
    for title, sides in comparisons():
        seconds = measure.in_turns(sides, options.repetitions, unseen=2)
        ours, theirs = seconds.values()
        row = {"case": title, "against": list(sides)[1], "ours": ours, "theirs": theirs}
        rows.append(row | {"ratio": measure.ratio(ours, theirs)})
    measure.show(
        f"forward and backward on {options.cores} cores, milliseconds (medians)",
        ("case", "ours", "against", "theirs", "times faster", "least"),
        [
            (r["case"], 1e3 * _median(r["ours"]), r["against"], 1e3 * _median(r["theirs"]), r["ratio"]["median"])
            + (r["ratio"]["least"],)
            for r in rows
        ],
    )
    measure.write(options.output, {"cases": rows})


def comparisons():
    """(what, {ours: call, theirs: call}) one after the other."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels import expert_ffn, lightning_attention, token_logprobs

    def draw(*shape, seed=0):
        return jax.random.normal(jax.random.key(seed), shape)

    def sides(form, *inputs, arguments: int) -> dict[str, Any]:
        made = {}
        for backend in ("xla", "definition"):
            run = partial(form, backend=backend)
            loss = lambda *x, run=run: (run(*x)[0] ** 2).sum()  # noqa: E731
            step = jax.jit(jax.grad(loss, argnums=tuple(range(arguments))))
            made[backend] = lambda step=step: jax.block_until_ready(step(*inputs))
        return made

    for name, (batch, length, heads, dim) in {"tiny": (4, 512, 4, 32), "small": (1, 2048, 8, 128)}.items():
        q, k, v = draw(3, batch, length, heads, dim) / dim**0.5
        decay = -jnp.linspace(0.01, 0.9, heads)
        yield f"lightning attention {name}", sides(lightning_attention, q, k, v, decay, arguments=3)

    for name, (tokens, hidden, ffn, experts, top_k) in LAYERS.items():
        weights = draw(experts, hidden, ffn), draw(experts, hidden, ffn, seed=1), draw(experts, ffn, hidden, seed=2)
        chosen = jax.lax.top_k(draw(tokens, experts, seed=3), top_k)[1]
        shares = jnp.full((tokens, top_k), 1.0 / top_k)

        def run(x, shares, *matrices, chosen=chosen, backend):
            return expert_ffn(x, chosen, shares, *(m / 20 for m in matrices), backend=backend)

        yield f"experts {name}", sides(run, draw(tokens, hidden), shares, *weights, arguments=5)

    for name, (tokens, hidden, vocab) in {"small": (1024, 256, 32_000), "large": (512, 512, 200_064)}.items():
        targets = jax.random.randint(jax.random.key(1), (1, tokens), 0, vocab)
        run = lambda h, w, targets=targets, backend=None: token_logprobs(h, w, targets, backend=backend)  # noqa: E731
        yield f"log-probabilities {name}", sides(run, draw(1, tokens, hidden), draw(hidden, vocab) / 16, arguments=2)

    for name, shape in LAYERS.items():
        yield f"M2 layer of experts {name}", against_transformers(*shape)


def against_transformers(tokens: int, hidden: int, ffn: int, experts: int, top_k: int) -> dict[str, Any]:
    """The same layer in both, after they agree."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    from flax import nnx
    from transformers import MiniMaxM2Config
    from transformers.models.minimax_m2 import modeling_minimax_m2 as theirs

    from posttrain_jax.models.moe import MixtureOfExperts

    arch = measure.recipe("tiny").model
    arch = dataclasses.replace(arch, hidden=hidden, expert_ffn=ffn, experts=experts, experts_per_token=top_k)
    ours = MixtureOfExperts(arch, rngs=nnx.Rngs(0), dtype=jnp.float32)
    config = MiniMaxM2Config(
        hidden_size=hidden, intermediate_size=ffn, num_local_experts=experts, num_experts_per_tok=top_k
    )
    config._experts_implementation = "grouped_mm"
    block = theirs.MiniMaxM2SparseMoeBlock(config)
    turned = lambda x: torch.tensor(np.asarray(x).swapaxes(-1, -2).copy())  # noqa: E731
    gates = np.concatenate([ours.gate[...], ours.up[...]], axis=-1)
    names = {"gate.weight": ours.router[...], "experts.gate_up_proj": gates, "experts.down_proj": ours.down[...]}
    block.load_state_dict({name: turned(x) for name, x in names.items()}, strict=False)
    block.e_score_correction_bias.zero_()
    x = np.random.default_rng(0).normal(size=(1, tokens, hidden)).astype(np.float32)
    graph, state = nnx.split(ours)

    @jax.jit
    def step(state, x):
        return jax.value_and_grad(lambda s, x: (nnx.merge(graph, s)(x)[0] ** 2).sum(), argnums=(0, 1))(state, x)

    there = torch.tensor(x, requires_grad=True)

    def torch_step():
        block.zero_grad()
        there.grad = None
        loss = (block(there) ** 2).sum()
        loss.backward()
        return loss.item()

    here = jnp.asarray(x)
    loss, (_, d_x) = step(state, here)
    assert abs(torch_step() / float(loss) - 1) < 1e-4
    assert np.abs(there.grad.numpy() - d_x).max() < 1e-4 * np.abs(d_x).max()
    return {"xla": lambda: jax.block_until_ready(step(state, here)), "transformers grouped_mm": torch_step}


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
