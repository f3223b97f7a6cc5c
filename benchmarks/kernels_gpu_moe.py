"""The parts of ``kernels_gpu.py`` about routed experts and log-probabilities, at MiniMax-M2's sizes."""

from __future__ import annotations

from functools import partial
from typing import Any

TOKENS, HIDDEN, FFN, EXPERTS, TOP_K, VOCAB = 16_384, 3072, 1536, 256, 8, 200_064
CHECKED = 64  # tokens whose values are held against the definition


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

    @jax.jit
    def error(a, b):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)

    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        off = float(error(a, b))
        assert off < tolerance, f"{what} is off by {off:.3f} of its size"


def dispatch_part(options: Any, copy: float) -> dict[str, Any]:
    """Useful FLOP/s of the layer, forward and both ways, as shares of a large bfloat16 product's, ours and others'."""
    import experts_of_others as others
    import jax
    import jax.numpy as jnp
    import measure
    from kernels_gpu import jax_call, rates, torch_call

    from pallas_kernels import expert_ffn

    tokens, gradient, weights, gate, up, down, square = draws(
        (TOKENS, HIDDEN), (TOKENS, HIDDEN), (TOKENS, TOP_K),
        (EXPERTS, HIDDEN, FFN), (EXPERTS, HIDDEN, FFN), (EXPERTS, FFN, HIDDEN), (8192, 8192),
    )  # fmt: skip
    chosen = jax.lax.top_k(jax.random.normal(jax.random.key(1), (TOKENS, EXPERTS)), TOP_K)[1].astype(jnp.int32)
    inputs = tokens * HIDDEN**0.5, weights, gate, up, down

    def ways(layer, compile):
        forward = lambda x, *rest: layer(x, chosen, *rest)  # noqa: E731

        def both(gradient, *inputs):
            out, back = jax.vjp(forward, *inputs)
            return out, back(gradient)

        return compile(forward, *inputs), compile(both, gradient, *inputs)

    jitted = lambda f, *_: jax.jit(f)  # noqa: E731
    sides = {"gpu": ways(partial(expert_ffn, backend="gpu"), jitted)}
    for name, product in others.products().items():
        sides[name] = ways(partial(others.experts, product), others.tuned if name == "tokamax" else jitted)
    few = inputs[0][:CHECKED], chosen[:CHECKED], weights[:CHECKED], *inputs[2:]
    exact, expected = expert_ffn(*few, backend="definition"), sides["ragged"][1](gradient, *inputs)
    forward, both = {}, {}
    for name, (step, step_back) in sides.items():
        close(step(*inputs)[:CHECKED], exact, f"the layer of {name}")
        close(step_back(gradient, *inputs), expected, f"the layer of {name} or a gradient of it")
        forward[name], both[name] = jax_call(step, *inputs), jax_call(step_back, gradient, *inputs)
    if theirs := others.torch_experts(gradient, chosen, *inputs):
        out = theirs[1]()
        found = jax.tree.map(lambda x: jnp.from_dlpack(x.detach().contiguous()), out)
        close(found[0][:CHECKED], exact, "the layer of torch")
        close(found, expected, "the layer of torch or a gradient of it")
        forward["torch"], both["torch"] = map(torch_call, theirs)
        del out, found
    del expected
    flops = 2 * 3 * TOKENS * TOP_K * HIDDEN * FFN
    ceiling = rates({"product": jax_call(jax.jit(jnp.dot), square, square)}, 2 * 8192**3, options.repetitions)
    told: dict[str, Any] = {"ceiling": ceiling["product"]}
    told["forward"] = rates(forward, flops, options.repetitions)
    told["both"] = rates(both, 3 * flops, options.repetitions)
    top = told["ceiling"]["median"]
    share = lambda kind, name: told[kind][name]["median"] / top  # noqa: E731
    rows = [(name, share("forward", name), share("both", name)) for name in forward]
    measure.show(f"routed experts as shares of {top / 1e12:.0f} TFLOP/s", ("form", "forward", "both ways"), rows)
    return told


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
    logprobs_agree(hidden[:, :512], head, targets[:, :512])
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


def logprobs_agree(hidden: Any, head: Any, targets: Any) -> None:
    """Raises AssertionError where values or gradients are not those of the definition in float32."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels import token_logprobs

    gradient = jax.random.normal(jax.random.key(2), targets.shape, jnp.float32)

    def both(form):
        def run(*inputs):
            found, back = jax.vjp(lambda *x: token_logprobs(*x, targets, backend=form), *inputs)
            return found, back((gradient, jnp.zeros_like(found[1])))

        return jax.jit(run)

    found = both("gpu")(hidden, head)
    with jax.default_matmul_precision("highest"):
        exact = both("definition")(hidden.astype(jnp.float32), head.astype(jnp.float32))
    close(found[0], exact[0], "token_logprobs", 1e-3)
    close(found[1], exact[1], "a gradient of token_logprobs")
