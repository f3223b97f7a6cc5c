"""Log-probabilities on a mesh: tokens where they lie, the vocabulary over "tensor", the rest of the head gathered."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

import pallas_kernels
from posttrain_jax.parallel.placement import alike, along, current, whole


def token_logprobs(
    hidden: Float[Array, "batch length hidden"],
    head: Float[Array, "hidden vocab"],
    targets: Int[Array, "batch length"],
    *,
    temperature: Float[Array, "batch length"] | float = 1.0,
) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
    """log softmax(hidden · head / temperature)[targets], and the entropy of that softmax."""
    place = current()
    if place is None:
        return pallas_kernels.token_logprobs(hidden, head, targets, temperature=temperature)
    tokens = place.spec(("batch", "length"), targets.shape)
    columns = place.spec(("embed", "vocab"), head.shape)
    over = along(columns, 1)

    def local(hidden, head, targets, heat):
        head = whole(head, along(columns, 0), 0)
        if not over:
            return pallas_kernels.token_logprobs(hidden, head, targets, temperature=heat)
        hidden = _shared_input(hidden, over[0])
        found = pallas_kernels.token_logprobs(hidden, head, targets, temperature=heat, axis_name=over[0])
        return tuple(alike(x, over) for x in found)

    heat = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), targets.shape)
    run = jax.shard_map(
        local,
        mesh=place.mesh,
        in_specs=(tokens, columns, tokens, tokens),
        out_specs=(tokens, tokens),
        check_vma=False,
    )
    return run(hidden, head, targets, heat)


# The kernel gives each device the whole gradient of the hidden states, and `shard_map` adds up what it gets.


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _shared_input(x, axis_name):
    return x


_shared_input.defvjp(lambda x, axis_name: (x, None), lambda axis_name, _, g: (g / jax.lax.axis_size(axis_name),))
