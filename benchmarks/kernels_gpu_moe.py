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
