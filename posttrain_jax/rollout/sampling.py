"""Drawing the next token."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def draw(
    logits: Float[Array, "slots vocab"],
    uniform: Float[Array, " slots"],
    *,
    temperature: Float[Array, " slots"] | float,
    top_p: float,
    top_k: int,
) -> tuple[Int[Array, " slots"], Float[Array, " slots"]]:
    """One token a slot, and its log-probability under softmax(logits / temperature).

    ``uniform`` holds the chance: a number in [0, 1) a slot. All may share a temperature. The log-probability is that of
    the distribution before top-k and top-p cut it: the one the trainer sees. At temperature 0 the likeliest token is
    taken and its log-probability is that of softmax(logits).
    """
    greedy, logits = _tempered(logits, temperature)
    logits = logits - logits.max(axis=-1, keepdims=True)
    kept = keep_top_p(keep_top_k(logits, top_k), top_p)
    tokens = jnp.where(greedy, likeliest(kept), invert(jnp.exp(kept), uniform))
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jnp.log(jnp.exp(logits).sum(axis=-1))


def distribution(
    logits: Float[Array, "slots vocab"], *, temperature: Float[Array, " slots"] | float, top_p: float, top_k: int
) -> tuple[Float[Array, "slots vocab"], Float[Array, "slots vocab"]]:
    """What `draw` draws from, in full: the probability of each token, and the log-probability that it would report."""
    greedy, logits = _tempered(logits, temperature)
    kept = keep_top_p(keep_top_k(logits, top_k), top_p)
    certain = jnp.arange(logits.shape[-1]) == likeliest(kept)[:, None]
    return jnp.where(greedy[:, None], certain, jax.nn.softmax(kept, axis=-1)), jax.nn.log_softmax(logits, axis=-1)


def _tempered(logits, temperature):
    """Which slots are greedy, and logits / temperature, those of the greedy as they are."""
    temperature = jnp.broadcast_to(jnp.asarray(temperature), logits.shape[:1])
    greedy = temperature == 0
    return greedy, logits.astype(jnp.float32) / jnp.where(greedy, 1.0, temperature)[:, None]


def likeliest(logits: Float[Array, "slots vocab"]) -> Int[Array, " slots"]:
    """The first index of the largest logit; `jnp.argmax`, in the form that vectorises on CPUs."""
    index = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    largest = logits == logits.max(axis=-1, keepdims=True)
    return jnp.where(largest, index, logits.shape[-1] - 1).min(axis=-1)


def invert(mass: Float[Array, "slots vocab"], uniform: Float[Array, " slots"]) -> Int[Array, " slots"]:
    """The token at which the running sum of ``mass`` passes the share ``uniform``, in [0, 1), of the whole.

    One random number a slot, against one a token with the Gumbel trick. Two levels, about √vocab blocks and then the
    tokens of one, keep the running sums short and therefore fast and exact.
    """
    vocab = mass.shape[-1]
    size = next(n for n in range(math.isqrt(vocab), vocab + 1) if vocab % n == 0)
    mass = mass.reshape(-1, vocab // size, size)
    blocks = mass.sum(axis=-1)
    block, left = _passes(blocks, uniform * blocks.sum(axis=-1))
    token, _ = _passes(jnp.take_along_axis(mass, block[:, None, None], axis=1)[:, 0], left)
    return (block * size + token).astype(jnp.int32)


def _passes(
    mass: Float[Array, "slots n"], target: Float[Array, " slots"]
) -> tuple[Int[Array, " slots"], Float[Array, " slots"]]:
    """Where the running sum of ``mass`` first exceeds ``target``, and how much of the target lies there."""
    running = jnp.cumsum(mass, axis=-1)
    target = jnp.minimum(target, running[:, -1] * (1 - 2**-22))[:, None]  # rounding must not carry it past the end
    index = (running <= target).sum(axis=-1, keepdims=True)
    return index[:, 0], (target - jnp.take_along_axis(running - mass, index, axis=-1))[:, 0]


def keep_top_k(logits: Float[Array, "slots vocab"], top_k: int) -> Float[Array, "slots vocab"]:
    """-inf outside the ``top_k`` largest; 0 keeps all."""
    if not 0 < top_k < logits.shape[-1]:
        return logits
    smallest = jax.lax.top_k(logits, top_k)[0][:, -1:]
    return jnp.where(logits < smallest, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "slots vocab"], top_p: float) -> Float[Array, "slots vocab"]:
    """-inf outside the smallest set of likeliest tokens (one at least) that holds ``top_p``; 1 keeps all."""
    if top_p >= 1:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(descending), axis=-1) - jax.nn.softmax(descending)
    smallest = jnp.min(jnp.where(before < top_p, descending, descending[:, :1]), axis=-1, keepdims=True)
    return jnp.where(logits < smallest, -jnp.inf, logits)
