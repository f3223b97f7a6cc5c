"""From one number a token to one loss: what each token of a response weighs.

Every way of averaging is a sum with weights that are known before the loss is. They are made once for the whole
minibatch and put where an objective takes its mask; sums over microbatches and devices are then exact, however the
batch is cut.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_weights(
    lengths: Int[Array, " responses"],
    prompt_ids: Int[Array, " responses"],
    mode: str,
    *,
    prompts: int,
    constant: float = 1.0,
) -> Float[Array, " responses"]:
    """The weight of each token of a response; Σ_i lengths_i · weights_i = 1, but for ``sequence_sum``.

    * ``token_mean``: 1 / all tokens (DAPO, CISPO).
    * ``sequence_mean``: the mean over responses of the mean over their tokens (GRPO).
    * ``sequence_sum``: the mean over responses of the sum over their tokens / ``constant`` (Dr. GRPO).
    * ``prompt_mean``: the mean over prompts of the mean over all tokens of their responses (ScaleRL).

    Args:
      lengths: trained tokens of each response; 0 for places that hold none.
      prompt_ids: which prompt, in 0 .. prompts - 1, a response answers.
      mode: which of the above.
      prompts: how many there may be (static).
      constant: what ``sequence_sum`` divides by: the longest response there can be.

    Raises:
      ValueError: an unknown mode.
    """
    held = lengths > 0
    responses = jnp.maximum(held.sum(), 1)
    of_prompt = jax.ops.segment_sum(lengths, prompt_ids, prompts)
    if mode == "token_mean":
        divisor = jnp.maximum(lengths.sum(), 1)
    elif mode == "sequence_mean":
        divisor = responses * jnp.maximum(lengths, 1)
    elif mode == "sequence_sum":
        divisor = responses * constant
    elif mode == "prompt_mean":
        divisor = jnp.maximum((of_prompt > 0).sum(), 1) * jnp.maximum(of_prompt, 1)[prompt_ids]
    else:
        raise ValueError(f"no aggregation {mode!r}; known: token_mean, sequence_mean, sequence_sum, prompt_mean")
    return jnp.where(held, 1.0 / divisor, 0.0)
