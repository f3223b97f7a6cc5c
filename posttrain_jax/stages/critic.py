"""PPO's critic: a linear reading of the policy's own hidden states, carried among its weights."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posttrain_jax.models.parts import constant

CRITIC = "critic"


def with_critic(weights: nnx.State) -> nnx.State:
    """The weights, and a critic that values everything at 0."""
    flat = dict(weights.flat_state())
    (hidden,) = flat["norm",].get_value().shape
    critic = {
        (CRITIC, "weight"): constant(0.0, (hidden,), ("norm",), dtype=jnp.float32),
        (CRITIC, "bias"): constant(0.0, (), (), dtype=jnp.float32),
    }
    return nnx.State.from_flat_path({**flat, **critic}.items())


def split_critic(
    weights: nnx.State,
) -> tuple[nnx.State, Callable[[Float[Array, "batch length hidden"]], Float[Array, "batch length"]] | None]:
    """The policy's weights alone, and the critic as a function of its hidden states, if there is one."""
    if CRITIC not in weights:
        return weights, None
    flat = dict(weights.flat_state())
    weight, bias = (flat[CRITIC, name].get_value() for name in ("weight", "bias"))

    def value(hidden):
        return hidden.astype(jnp.float32) @ weight + bias

    policy = [(path, leaf) for path, leaf in flat.items() if path[0] != CRITIC]
    return nnx.State.from_flat_path(policy), value
