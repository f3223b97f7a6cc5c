"""What do log-probabilities and entropy over a large vocabulary cost, in chunks and plainly?

Value and gradient of a weighted sum of token log-probabilities, from hidden states to a vocabulary of 200,064 (that of
MiniMax-M2). Memory is what the compiled program reserves beside its inputs and outputs.

    python benchmarks/logprobs.py [--tokens=1024] [--hidden=512] [--vocab=200064] [--chunk=64]
"""

from __future__ import annotations

import measure


def main() -> None:
    """Both forms, in turns."""
    parser = measure.parser(__doc__, "logprobs")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens")
    parser.add_argument("--hidden", type=int, default=512, help="width of a hidden state")
    parser.add_argument("--vocab", type=int, default=200064, help="rows of the head")
    parser.add_argument("--chunk", type=int, default=64, help="tokens whose logits exist at one time")
    parser.add_argument("--repetitions", type=int, default=5, help="timed turns of each side")
    options = parser.parse_args()
    measure.start(2)
    import jax
    import jax.numpy as jnp

    from pallas_kernels import token_logprobs

    def plain(hidden, head, targets):
        logprobs = jax.nn.log_softmax(hidden @ head, axis=-1)
        entropy = -(jnp.exp(logprobs) * logprobs).sum(-1)
        return jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0], jax.lax.stop_gradient(entropy)

    def chunked(hidden, head, targets):
        return token_logprobs(hidden, head, targets, chunk=options.chunk)

    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (1, options.tokens, options.hidden))
    head = jax.random.normal(keys[1], (options.hidden, options.vocab)) * options.hidden**-0.5
    targets = jax.random.randint(keys[2], (1, options.tokens), 0, options.vocab)
    weights = jax.random.normal(keys[3], (1, options.tokens))
    compiled, results = {}, {}
    for name, form in (("chunked", chunked), ("plain", plain)):

        def loss(hidden, head, form=form):
            logprobs, entropy = form(hidden, head, targets)
            return (weights * logprobs).sum(), entropy

        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        compiled[name] = jax.jit(gradient).lower(hidden, head).compile()
        results[name] = compiled[name](hidden, head)
    for a, b in zip(*map(jax.tree.leaves, results.values()), strict=True):
        assert jnp.abs(a - b).max() <= 1e-4 * jnp.abs(b).max()

    sides = {name: lambda run=run: jax.block_until_ready(run(hidden, head)) for name, run in compiled.items()}
    seconds = measure.in_turns(sides, options.repetitions)
    found = {
        name: {
            "temporary_bytes": run.memory_analysis().temp_size_in_bytes,
            "tokens_per_second": measure.rate(options.tokens, seconds[name]),
        }
        for name, run in compiled.items()
    }
    measure.show(
        f"{options.tokens} tokens, hidden {options.hidden}, vocabulary {options.vocab:,}: value and gradient",
        ("form", "temporary memory, MB", "tokens a second"),
        [(name, f["temporary_bytes"] / 1e6, f["tokens_per_second"]["median"]) for name, f in found.items()],
    )
    ratio = measure.ratio(seconds["chunked"], seconds["plain"])
    measure.write(options.output, {"sizes": vars(options) | {"output": ""}, "sides": found, "ratio": ratio})


if __name__ == "__main__":
    main()
