"""The parts of ``kernels_gpu.py`` about routed experts and log-probabilities, at MiniMax-M2's sizes."""

from __future__ import annotations

from typing import Any

TOKENS, HIDDEN, FFN, EXPERTS, TOP_K, VOCAB = 16_384, 3072, 1536, 256, 8, 200_064


def draws(*shapes: tuple[int, ...]) -> list[Any]:
    """Normal bfloat16 arrays, each divided by the root of its last width but one."""
    import jax
    import jax.numpy as jnp

    found = zip(jax.random.split(jax.random.key(0), len(shapes)), shapes, strict=True)
    return [jax.random.normal(key, shape, jnp.bfloat16) * shape[-2] ** -0.5 for key, shape in found]


def close(found: Any, expected: Any, what: str, tolerance: float = 0.03) -> None:
    """Raises AssertionError where two trees differ by more than ``tolerance`` of their size."""
    import jax
    import jax.numpy as jnp

    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        error = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        assert error < tolerance, f"{what} is off by {error:.3f} of its size"


def experts_of(form: str, tokens: Any, chosen: Any, weights: Any, gate: Any, up: Any, down: Any) -> Any:
    """The layer with our kernels ("gpu", "xla") or with ``jax.lax.ragged_dot`` ("ragged") and its permutes."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels import expert_ffn

    if form != "ragged":
        return expert_ffn(tokens, chosen, weights, gate, up, down, backend=form)
    order = jnp.argsort(chosen.reshape(-1))
    sizes = jnp.bincount(chosen.reshape(-1), length=len(gate)).astype(jnp.int32)
    rows = tokens[order // chosen.shape[1]]
    product = jax.lax.ragged_dot
    inner = jax.nn.silu(product(rows, gate, sizes)) * product(rows, up, sizes)
    out = product(inner, down, sizes)[jnp.argsort(order)].reshape(*chosen.shape, -1)
    return (out * weights[..., None]).sum(axis=1)


def dispatch_part(options: Any, copy: float) -> dict[str, Any]:
    """Useful FLOP/s of the layer, forward and both ways, as shares of a large bfloat16 product's."""
    import jax
    import jax.numpy as jnp
    import measure
    from kernels_gpu import jax_call, rates

    tokens, gradient, weights, gate, up, down, square = draws(
        (TOKENS, HIDDEN), (TOKENS, HIDDEN), (TOKENS, TOP_K),
        (EXPERTS, HIDDEN, FFN), (EXPERTS, HIDDEN, FFN), (EXPERTS, FFN, HIDDEN), (8192, 8192),
    )  # fmt: skip
    chosen = jax.lax.top_k(jax.random.normal(jax.random.key(1), (TOKENS, EXPERTS)), TOP_K)[1].astype(jnp.int32)
    inputs = tokens * HIDDEN**0.5, weights, gate, up, down

    def both_of(form):
        def both(gradient, *inputs):
            out, back = jax.vjp(lambda x, *rest: experts_of(form, x, chosen, *rest), *inputs)
            return out, back(gradient)

        return jax.jit(both)

    forms = ("gpu", "ragged")
    forward = {f: jax.jit(lambda x, *rest, f=f: experts_of(f, x, chosen, *rest)) for f in forms}
    both = {f: both_of(f) for f in forms}
    close(both["gpu"](gradient, *inputs), both["ragged"](gradient, *inputs), "expert_ffn")
    flops = 2 * 3 * TOKENS * TOP_K * HIDDEN * FFN
    ceiling = rates({"product": jax_call(jax.jit(jnp.dot), square, square)}, 2 * 8192**3, options.repetitions)
    found: dict[str, Any] = {"ceiling": ceiling["product"]}
    found["forward"] = rates({f: jax_call(forward[f], *inputs) for f in forms}, flops, options.repetitions)
    found["both"] = rates({f: jax_call(both[f], gradient, *inputs) for f in forms}, 3 * flops, options.repetitions)
    top = found["ceiling"]["median"]
    share = lambda kind, form: found[kind][form]["median"] / top  # noqa: E731
    rows = [(form, share("forward", form), share("both", form)) for form in forms]
    measure.show(f"routed experts as shares of {top / 1e12:.0f} TFLOP/s", ("form", "forward", "both ways"), rows)
    return found


def logprobs_part(options: Any, copy: float) -> dict[str, Any]:
    """Times of the log-probabilities against those of their products, and the memory beside arguments and results."""
    import jax
    import jax.numpy as jnp
    import measure
    from kernels_gpu import jax_call, rates

    from pallas_kernels import token_logprobs

    hidden, head = draws((1, TOKENS, HIDDEN), (HIDDEN, VOCAB))
    hidden = hidden * TOKENS**0.5
    targets = jax.random.randint(jax.random.key(1), (1, TOKENS), 0, VOCAB)
    ours = lambda hidden, head, form="gpu": token_logprobs(hidden, head, targets, backend=form)  # noqa: E731
    some = hidden[:, :512], head
    both = lambda form: lambda h, w: token_logprobs(h, w, targets[:, :512], backend=form)  # noqa: E731
    close(jax.jit(both("gpu"))(*some), jax.jit(both("xla"))(*some), "token_logprobs", 1e-3)
    slope = jax.jit(jax.grad(lambda *x: ours(*x)[0].sum(), (0, 1)))
    compiled = slope.lower(hidden, head).compile()
    # the products that the forward pass stands for, by slices of which the logits fit
    part = head[:, : VOCAB // 8]
    sides = {
        "ours": (jax_call(jax.jit(ours), hidden, head), 1.0),
        "product": (jax_call(jax.jit(jnp.dot), hidden[0], part), 1 / 8),
    }
    flops = 2 * TOKENS * HIDDEN * VOCAB
    found = {name: rates({name: run}, flops * share, options.repetitions)[name] for name, (run, share) in sides.items()}
    told: Any = compiled.memory_analysis()
    ratio = found["product"]["median"] / found["ours"]["median"]
    back = rates({"both": jax_call(slope, hidden, head)}, 4 * flops, options.repetitions)["both"]
    slower = found["product"]["median"] / back["median"]
    rows = [("forward", ratio), ("forward and backward", slower)]
    measure.show("log-probabilities: time over that of their products", ("", "times"), rows)
    print(f"{told.temp_size_in_bytes / 1e9:.2f} GB beside arguments and results")
    return {**found, "both": back, "temporary_bytes": told.temp_size_in_bytes}
