"""Weights from a path: a released checkpoint's folder, or the directory of a run."""

from __future__ import annotations

from pathlib import Path

import jax
from flax import nnx

from posttrain_jax import hf
from posttrain_jax.errors import UserError
from posttrain_jax.models.architecture import Architecture
from posttrain_jax.models.decoder import Decoder, abstract
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.run.checkpoint import Checkpointer


def read(path: Path, arch: Architecture, dtype: str = "float32", mesh: jax.sharding.Mesh | None = None) -> nnx.State:
    """The weights of a model, for `Engine.load`.

    Args:
      path: with safetensors, or with ``checkpoints/``, whose newest sound one is taken.
      arch: the model.
      dtype: of the weights.
      mesh: where they go; the first device without one.

    Raises:
      UserError: nothing to read there, only damaged files, or the weights of another model.
    """
    mesh = mesh or make_mesh(devices=jax.local_devices()[:1])
    _, wanted = abstract(lambda: Decoder(arch, rngs=nnx.Rngs(0), param_dtype=dtype), mesh)
    if any(path.glob("*.safetensors")):
        weights = nnx.state(hf.load(path, dtype, mesh))
        if _shapes(weights) != _shapes(wanted):
            raise UserError(f"{path} holds another model than the one that is served")
        return weights
    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path} has neither safetensors nor checkpoints/")
    checkpointer = Checkpointer(path / "checkpoints")
    try:
        restored = checkpointer.restore_subtree("weights", wanted, cast=True)
    finally:
        checkpointer.close()
    if restored is None:
        raise UserError(f"{path} has no checkpoint yet")
    return restored.arrays


def _shapes(weights: nnx.State) -> dict:
    return {path: leaf.get_value().shape for path, leaf in weights.flat_state()}
