"""How near to the memory's rate are the kernels on an NVIDIA Hopper GPU, and how far from flash-linear-attention?

Lightning attention at 4K … 128K tokens, 64 heads of 128, bfloat16, as in MiniMax-M1. First values and gradients must
agree with the definition; then, in turns: the forward pass next to a copy (which is the ceiling: q, k, v and o once),
forward and backward, our own "xla" form, and flash-linear-attention's Triton kernels in the same process where `fla`
and torch with CUDA can be imported. Needs one H100 or H200.

    python benchmarks/kernels_gpu.py [--parts lightning_attention dispatch …] [--repetitions=9] [--tokens 4096 8192 …]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import measure
from kernels_gpu_moe import dispatch_part, logprobs_part

HEADS, DIM = 64, 128
TOKENS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
SECONDS = 0.1  # of work between two looks at the clock, about

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")  # torch has the rest


def main() -> None:
    """Every part that is asked for."""
    parser = measure.parser(__doc__, "kernels_gpu")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--repetitions", type=int, default=9, help="timed turns of each side")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="lengths of lightning attention")
    options = parser.parse_args()
    device = hopper()
    numbers: dict[str, Any] = {"gpu": device.device_kind, "copy": copy_rate(options.repetitions)}
    print(f"{device.device_kind}: a copy moves {numbers['copy']['median'] / 1e12:.2f} TB/s")
    for name in options.parts:
        numbers[name] = PARTS[name](options, numbers["copy"]["median"])
    measure.write(options.output, numbers)


def hopper() -> Any:
    """The attached H100 or H200.

    Raises:
      SystemExit: there is none.
    """
    import jax

    device = jax.devices()[0]
    if getattr(device, "compute_capability", "") != "9.0":
        raise SystemExit(f"this needs an NVIDIA H100 or H200; JAX sees {device.device_kind}")
    return device


def copy_rate(repetitions: int) -> dict[str, Any]:
    """Bytes a second, read and written, of a copy of 2 GiB."""
    import jax
    import jax.numpy as jnp

    x = jnp.zeros((1 << 30,), jnp.bfloat16)
    step = jax.jit(lambda x: x + 1)
    return rates({"copy": jax_call(step, x)}, 2 * x.nbytes, repetitions)["copy"]


def jax_call(step: Callable[..., Any], *inputs: Any) -> Callable[[int], None]:
    """Runs a compiled function some times, and waits for the last."""
    import jax

    def run(times: int) -> None:
        for _ in range(times):
            out = step(*inputs)
        jax.block_until_ready(out)

    return run


def torch_call(step: Callable[[], Any]) -> Callable[[int], None]:
    """Runs a function of torch some times, and waits for the GPU."""
    import torch

    def run(times: int) -> None:
        for _ in range(times):
            step()
        torch.cuda.synchronize()

    return run


def rates(sides: dict[str, Callable[[int], None]], amount: float, repetitions: int) -> dict[str, Any]:
    """Of each side, ``amount`` a second for one call; a turn is as many calls as fill ``SECONDS``."""
    import time

    times = {}
    for name, run in sides.items():
        run(1)  # compiles
        start = time.perf_counter()
        run(3)
        times[name] = max(1, int(SECONDS / ((time.perf_counter() - start) / 3)))
    seconds = measure.in_turns({n: lambda n=n: sides[n](times[n]) for n in sides}, repetitions)
    return {name: measure.rate(amount, [s / times[name] for s in seconds[name]]) for name in sides}


# --- lightning attention


def lightning_part(options: Any, copy: float) -> list[dict[str, Any]]:
    """Tokens a second at each length, with the share of the memory roofline; linear where they stay the same."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels.lightning_attention import decay_slopes

    decay = -jnp.asarray(decay_slopes(HEADS), jnp.float32)
    lightning_agrees(decay)
    rows = []
    for tokens in options.tokens:
        q, k, v, g = (jax.random.normal(key, (1, tokens, HEADS, DIM), jnp.bfloat16) for key in keys(4))
        forward, both = {}, {}
        for name in ("gpu", "xla"):
            step, step_back = lightning_of_ours(name, decay)
            forward[name], both[name] = jax_call(step, q, k, v), jax_call(step_back, q, k, v, g)
        for name, (step, step_back) in lightning_of_fla(tokens, decay).items():
            forward[name], both[name] = torch_call(step), torch_call(step_back)
        row: dict[str, Any] = {"tokens": tokens}
        row["forward"] = rates(forward, tokens, options.repetitions)
        row["both"] = rates(both, tokens, options.repetitions)
        row["roofline"] = 4 * 2 * HEADS * DIM * row["forward"]["gpu"]["median"] / copy
        rows.append(row)
    against = list(rows[0]["forward"])[1:]
    ratio = lambda row, kind, name: row[kind]["gpu"]["median"] / row[kind][name]["median"]  # noqa: E731
    measure.show(
        f"lightning attention, {HEADS} heads of {DIM}, bfloat16: tokens a second; times faster than others",
        (
            "tokens",
            "forward",
            "of a copy's rate",
            "both ways",
            *(f"{k} {n}" for n in against for k in ("forward", "both")),
        ),
        [
            (row["tokens"], row["forward"]["gpu"]["median"], row["roofline"], row["both"]["gpu"]["median"])
            + tuple(ratio(row, kind, name) for name in against for kind in ("forward", "both"))
            for row in rows
        ],
    )
    return rows


def lightning_of_ours(backend: str, decay: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward, and forward and backward, of one of our forms."""
    import jax

    from pallas_kernels import lightning_attention

    def forward(q, k, v):
        return lightning_attention(q, k, v, decay, backend=backend)[0]

    def both(q, k, v, g):
        out, back = jax.vjp(forward, q, k, v)
        return out, back(g)

    return jax.jit(forward), jax.jit(both)


def lightning_agrees(decay: Any, tokens: int = 1000) -> None:
    """Raises AssertionError where values or gradients are not those of the definition, as near as bfloat16 can be."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pallas_kernels import lightning_attention

    segments = jnp.asarray(np.repeat([1, 0, 2, 3, 0], [300, 20, 500, 170, 10])[None])
    q, k, v, g = (jax.random.normal(key, (1, tokens, HEADS, DIM), jnp.bfloat16) for key in keys(4))

    def both(backend, *inputs):
        run = lambda q, k, v: lightning_attention(q, k, v, decay, segment_ids=segments, backend=backend)[0]  # noqa: E731
        out, back = jax.vjp(run, *inputs)
        return out, *back(g.astype(out.dtype))

    found = jax.jit(lambda *x: both("gpu", *x))(q, k, v)
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(lambda *x: both("definition", *x))(*wide)
    for name, a, b in zip(("out", "d_q", "d_k", "d_v"), found, exact, strict=True):
        error = float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
        print(f"lightning attention against the definition: {name} is off by {error:.2e} of its size")
        assert error < 6e-3, f"{name} is not what the definition says"


def lightning_of_fla(tokens: int, decay: Any) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Forward, and forward and backward, of flash-linear-attention; nothing where it cannot be imported."""
    import numpy as np

    try:
        import torch
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError as missing:
        print(f"without flash-linear-attention: {missing}")
        return {}
    if not torch.cuda.is_available():
        print("without flash-linear-attention: torch sees no GPU")
        return {}
    draw = lambda: torch.randn(1, tokens, HEADS, DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True)  # noqa: E731
    q, k, v = draw(), draw(), draw()
    g = torch.randn_like(v)
    slopes = torch.tensor(np.asarray(decay), device="cuda")
    run = lambda: chunk_simple_gla(q, k, v, g_gamma=slopes, scale=1.0)[0]  # noqa: E731

    def forward():
        with torch.no_grad():
            run()

    return {"fla": (forward, lambda: torch.autograd.grad(run(), (q, k, v), g))}


def keys(number: int) -> Any:
    """Keys of one seed."""
    import jax

    return jax.random.split(jax.random.key(0), number)


PARTS: dict[str, Callable[[Any, float], Any]] = {
    "lightning_attention": lightning_part,
    "dispatch": dispatch_part,
    "logprobs": logprobs_part,
}


if __name__ == "__main__":
    main()
