"""Routed experts with other people's grouped products and plain permutes, for ``kernels_gpu.py`` to time beside ours.

Rows are sorted by expert and not padded; all sides hold the same arrays, PyTorch the very memory of JAX's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Calls = tuple[Callable[[], Any], Callable[[], Any]]  # forward, and forward and backward


def experts(product: Callable[..., Any], tokens, chosen, weights, gate, up, down) -> Any:
    """The layer with ``product(rows, matrices, group_sizes)``, of JAX."""
    import jax
    import jax.numpy as jnp

    order = jnp.argsort(chosen.reshape(-1))
    sizes = jnp.bincount(chosen.reshape(-1), length=len(gate)).astype(jnp.int32)
    rows = tokens[order // chosen.shape[1]]
    inner = jax.nn.silu(product(rows, gate, sizes)) * product(rows, up, sizes)
    out = product(inner, down, sizes)[jnp.argsort(order)].reshape(*chosen.shape, -1)
    return (out * weights[..., None]).sum(axis=1)


def products() -> dict[str, Callable[..., Any]]:
    """JAX's ragged product, and tokamax's for GPUs where it can be imported."""
    import jax

    found = {"ragged": jax.lax.ragged_dot}
    try:
        import tokamax
    except ImportError as missing:
        print(f"without tokamax: {missing}")
        return found
    return {**found, "tokamax": lambda *x: tokamax.ragged_dot(*x, implementation="mosaic")}


def tuned(f: Callable[..., Any], *inputs: Any) -> Callable[..., Any]:
    """Compiled for these inputs with the settings of tokamax's products that its own search finds best."""
    import jax
    import tokamax

    with tokamax.autotune(jax.jit(f), *inputs, progress_bar=False):
        # anew: what was traced for the search has other settings in it
        return jax.jit(lambda *x: f(*x)).lower(*inputs).compile()


def torch_experts(gradient: Any, chosen: Any, *inputs: Any) -> Calls | None:
    """The layer with PyTorch's grouped product on the memory of JAX's arrays; None where PyTorch sees no GPU.

    The second call gives what ``jax.vjp`` does, the result and the gradients of ``inputs``.
    """
    try:
        import torch
    except ImportError as missing:
        print(f"without PyTorch: {missing}")
        return None
    if not torch.cuda.is_available():
        print("without PyTorch: it sees no GPU")
        return None
    return torch_calls(*(torch.from_dlpack(x) for x in (gradient, chosen, *inputs)))


def torch_calls(gradient: Any, chosen: Any, *inputs: Any) -> Calls:
    """As ``torch_experts``, for tensors."""
    import torch

    product = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    inputs = tuple(x.detach().requires_grad_() for x in inputs)

    def layer():
        tokens, weights, gate, up, down = inputs
        of_row, order = chosen.reshape(-1).sort(stable=True)
        every = torch.arange(len(gate), device=of_row.device, dtype=of_row.dtype)
        ends = torch.searchsorted(of_row, every, right=True).to(torch.int32)  # bincount would wait for the GPU
        rows = tokens[order // chosen.shape[1]]
        inner = torch.nn.functional.silu(product(rows, gate, offs=ends)) * product(rows, up, offs=ends)
        out = product(inner, down, offs=ends)[order.argsort()].reshape(*chosen.shape, -1)
        return (out * weights[..., None]).sum(dim=1)

    def forward():
        with torch.no_grad():
            return layer()

    def both():
        out = layer()
        return out, torch.autograd.grad(out, inputs, gradient)

    return forward, both
