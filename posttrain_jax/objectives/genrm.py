"""Teaching a generative reward model its labels: grades of one answer, or which of two is better.

MiniMax-M1 (arXiv 2506.13585, section 4.2) grades answers in five steps where there is a true answer, and compares them
with a reference answer, −1, 0 or +1, where there is none; comparisons that turn when the answers change places are left
out of training. The losses are not published: these are the cross-entropies of the label tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def grade_loss(
    logits: Float[Array, "answers grades"], grades: Int[Array, " answers"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = mean of -log softmax(logits)[grade].

    Args:
      logits: of the label tokens alone, worst grade first, where the model writes its verdict.
      grades: the true ones, from 0.

    Returns:
      The loss, ``accuracy``, and ``distance``: how many grades the expected one is off, on average.
    """
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
    expected = (jnp.exp(logprobs) * jnp.arange(logits.shape[1])).sum(axis=1)
    loss = -jnp.take_along_axis(logprobs, grades[:, None], axis=1).mean()
    return loss, {
        "accuracy": (logits.argmax(axis=1) == grades).mean(),
        "distance": jnp.abs(expected - grades).mean(),
    }


def comparison_loss(
    logits: Float[Array, "pairs 3"], swapped: Float[Array, "pairs 3"], labels: Int[Array, " pairs"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = mean of ½ (-log p(label | a, b) - log p(-label | b, a)): both orders, so that place teaches nothing.

    Args:
      logits: of the labels -1, 0 and +1, for an answer and then its reference.
      swapped: the same for the reference and then the answer.
      labels: -1, 0 or +1.

    Returns:
      The loss, ``accuracy`` of both orders, and ``consistent``: the share of pairs whose verdict turns with the places.
    """
    one, two = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (logits, swapped))
    right, turned = labels[:, None] + 1, 1 - labels[:, None]
    each = jnp.take_along_axis(one, right, axis=1) + jnp.take_along_axis(two, turned, axis=1)
    verdict, reverse = logits.argmax(axis=1) - 1, swapped.argmax(axis=1) - 1
    return -0.5 * each.mean(), {
        "accuracy": 0.5 * ((verdict == labels).mean() + (reverse == -labels).mean()),
        "consistent": (verdict == -reverse).mean(),
    }
