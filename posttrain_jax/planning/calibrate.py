"""The same reckoning for the attached device, beside what a step takes there: how far off is it?

The device's peak and bandwidth are measured first, with a large product and a large copy. Without a compiler's cycles
an instruction takes the larger of its FLOPs over that peak and its bytes over that bandwidth.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.planning import hlo
from posttrain_jax.planning.chips import Chip, Slice
from posttrain_jax.planning.collectives import Layout
from posttrain_jax.planning.programs import build
from posttrain_jax.planning.schedule import Walk
from posttrain_jax.planning.work import SFT
from posttrain_jax.run.recipe import MeshShape, Recipe

STEPS = 5


def calibrate(recipe: Recipe, log: Callable[[str], Any] = print) -> dict[str, Any]:
    """One SFT step of the recipe on the first attached device, estimated and measured."""
    device = jax.devices()[0]
    mesh = make_mesh(devices=[device])
    recipe = dataclasses.replace(recipe, mesh=MeshShape(data=1))
    chip = measure(recipe.precision.compute)
    log(f"{device.device_kind}: {chip.peak / 1e9:,.0f} GFLOP/s, {chip.hbm_bandwidth / 1e9:,.1f} GB/s measured")
    program = build(recipe, SFT, mesh)
    run: Any = program.run
    compiled = run.lower(*program.arguments).compile()
    layout = Layout(dict(mesh.shape), Slice("v5e", (1, 1)), np.zeros((1, 2), int))
    totals = Walk(hlo.read(compiled.as_text()), layout, program.turns, program.rounds, chip).whole()
    state, batch, _ = (_filled(tree, device) for tree in program.arguments)
    batch = _rows(batch, recipe.model.vocab, device)
    seconds = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch, jax.device_put(jnp.int32(program.turns), device)))
        seconds.append(time.perf_counter() - start)
    measured = statistics.median(seconds[1:])
    return {
        "device": device.device_kind,
        "program": SFT,
        "peak_flops": chip.peak,
        "bandwidth": chip.hbm_bandwidth,
        "flops": totals.flops,
        "bytes": totals.hbm,
        "estimated_seconds": totals.seconds,
        "measured_seconds": measured,
        "estimated_over_measured": totals.seconds / measured,
        "loops_assumed_once": totals.assumed,
    }


def measure(dtype: str) -> Chip:
    """The attached device's peak and bandwidth, as a chip."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    peak = 2 * size**3 / _fastest(jax.jit(lambda x: x @ x), x)
    y = jnp.ones(1 << 26, jnp.float32)
    bandwidth = 2 * y.nbytes / _fastest(jax.jit(lambda y: y + 1), y)
    return Chip(peak, 0, bandwidth, bandwidth, bandwidth, 1e9, axes=1, wraps=2)


def _fastest(f: Callable[..., Any], x: jax.Array) -> float:
    jax.block_until_ready(f(x))
    found = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(f(x))
        found.append(time.perf_counter() - start)
    return min(found)


def _filled(tree: Any, device: Any) -> Any:
    """Small random weights, so that routers spread their tokens; and zeros for whatever counts."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        number = jnp.issubdtype(leaf.dtype, jnp.floating)
        values = rng.standard_normal(leaf.shape, np.float32) * 0.02 if number else np.zeros(leaf.shape)
        return jax.device_put(jnp.asarray(values, leaf.dtype), device)

    return jax.tree.map(fill, tree)


def _rows(batch: dict[str, jax.Array], vocab: int, device: Any) -> dict[str, jax.Array]:
    """Full rows of random tokens."""
    rng, shape = np.random.default_rng(1), batch["tokens"].shape
    tokens = rng.integers(0, vocab, shape)
    rows = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=-1),
        "positions": np.broadcast_to(np.arange(shape[-1]), shape),
        "segment_ids": np.ones(shape),
        "mask": np.ones(shape),
    }
    return {name: jax.device_put(jnp.asarray(rows[name], batch[name].dtype), device) for name in batch}
