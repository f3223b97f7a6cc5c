"""What every test shares: eight virtual CPU devices, and a model small enough to compile in a second."""

import contextlib
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posttrain_jax.models.architecture import Architecture
from posttrain_jax.models.decoder import Decoder

jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))
# Not through XLA_FLAGS: a command that a test starts must see the machine as it is.
jax.config.update("jax_num_cpu_devices", 8)
# Most of a test's time is the compiler's. What tests start in processes of their own is compiled as users' programs are.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_configure(config):
    """Compiled programs outlive the session, in pytest's own cache: a second run takes half the time."""
    if hasattr(config, "cache"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session")
def arch() -> Architecture:
    """No two widths alike, so that a misplaced weight cannot fit; all even, so that meshes divide them."""
    return Architecture(
        layers=2,
        hidden=48,
        heads=4,
        kv_heads=2,
        head_dim=16,
        rotary_dim=8,
        rope_theta=1e4,
        experts=6,
        experts_per_token=2,
        expert_ffn=24,
        vocab=80,
        max_length=256,
    )


@pytest.fixture(scope="session")
def make_model():
    """``make_model(arch, **decoder_options)``: a model whose norms and biases are not at their trivial start."""

    def make(arch: Architecture, **options) -> Decoder:
        rng = np.random.default_rng(0)

        def fill(path, leaf):
            name = jax.tree_util.keystr(path)
            noise = rng.normal(size=leaf.shape)
            if "norm" in name:
                value = 1 + 0.2 * noise
            elif "bias" in name:
                value = 0.2 * noise
            elif "embed" in name:
                value = noise
            else:
                value = noise * leaf.shape[-2] ** -0.5
            return jnp.asarray(value, leaf.dtype)

        graph, shapes = nnx.split(nnx.eval_shape(lambda: Decoder(arch, rngs=nnx.Rngs(0), **options)))
        return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, shapes))

    return make


@pytest.fixture(scope="session")
def model(arch, make_model) -> Decoder:
    """The smallest model, scanned, float32. Not to be changed in place."""
    return make_model(arch)


@pytest.fixture(scope="session")
def serve():
    """``with serve(app) as url``: an ASGI application on a port of this machine."""
    uvicorn = pytest.importorskip("uvicorn")

    @contextlib.contextmanager
    def serving(app):
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
        ready = threading.Event()
        startup = server.startup

        async def start(**options):
            await startup(**options)
            ready.set()

        server.startup = start
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive()

    return serving
