"""What is left for a post-mortem when training diverges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posttrain_jax.parallel import exchange
from posttrain_jax.run.metrics import write_json_atomic


def write(workdir: Path, stage: str, step: int, metrics: dict[str, float], batch: Any, weights: Any) -> Path:
    """Writes the batch (``batch.npz``), the step's numbers and the norm of every weight; returns the folder."""
    folder = workdir / f"diverged-{stage}-{step}"
    arrays: dict[str, Any] = exchange.fetch(batch or {})
    norms = {
        jax.tree_util.keystr(path): float(exchange.fetch(jnp.linalg.norm(leaf.astype(jnp.float32))))
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
    }
    if jax.process_index() != 0:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if arrays:
        np.savez_compressed(folder / "batch.npz", **arrays)
    write_json_atomic(folder / "numbers.json", {"stage": stage, "step": step, "metrics": metrics, "norms": norms})
    return folder
