"""Learning from pairs: the Bradley-Terry loss of a reward model, DPO and its common variants."""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def bradley_terry(
    chosen: Float[Array, " pairs"],
    rejected: Float[Array, " pairs"],
    *,
    margin: Float[Array, " pairs"] | float = 0.0,
    centring: float = 0.0,
    weights: Float[Array, " pairs"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = mean of -log σ(r_w - r_l - m) + λ (r_w + r_l)².

    Args:
      chosen: the model's reward r_w of the better answer.
      rejected: r_l of the other.
      margin: m, how much better the first should be (Llama 2, arXiv 2307.09288, section 3.2.2).
      centring: λ, which keeps rewards around zero (arXiv 2312.09244).
      weights: what each pair counts in a sum that takes the means' place; without, they count alike and 1 in all.

    Returns:
      The loss, and ``accuracy``, the share of pairs in the right order, and ``margin``, the mean of r_w - r_l.
    """
    difference = chosen - rejected
    loss = -jax.nn.log_sigmoid(difference - margin) + centring * jnp.square(chosen + rejected)
    mean = partial(_mean, weights=weights)
    return mean(loss), {"accuracy": mean(difference > 0), "margin": mean(difference)}


def dpo(
    chosen: Float[Array, " pairs"],
    rejected: Float[Array, " pairs"],
    reference_chosen: Float[Array, " pairs"],
    reference_rejected: Float[Array, " pairs"],
    *,
    beta: float = 0.1,
    kind: Literal["sigmoid", "robust", "hinge", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
    weights: Float[Array, " pairs"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """loss = mean of f(h),  h = (log π - log π_ref)(y_w) - (log π - log π_ref)(y_l).

    ``sigmoid``: -(1-ε) log σ(βh) - ε log σ(-βh) (arXiv 2305.18290, equation 7; ε is 0 there);
    ``robust``: the same, unbiased: (-(1-ε) log σ(βh) + ε log σ(-βh)) / (1 - 2ε) (arXiv 2403.00409);
    ``hinge``: max(0, 1 - βh) (arXiv 2305.10425); ``ipo``: (h - 1/(2β))² (arXiv 2310.12036, equation 17), for which the
    log-probabilities are means over a response's tokens, not sums.

    Args:
      chosen: log π(y_w | x).
      rejected: log π(y_l | x).
      reference_chosen: log π_ref(y_w | x).
      reference_rejected: log π_ref(y_l | x).
      beta: β.
      kind: f.
      label_smoothing: ε, the share of wrong labels.
      weights: as of `bradley_terry`.

    Returns:
      The loss, and ``accuracy``, ``margin`` (the mean of βh) and the implicit rewards β (log π - log π_ref) of both.

    Raises:
      ValueError: an unknown kind.
    """
    gain_chosen, gain_rejected = chosen - reference_chosen, rejected - reference_rejected
    h = gain_chosen - gain_rejected
    right, wrong = jax.nn.log_sigmoid(beta * h), jax.nn.log_sigmoid(-beta * h)
    if kind == "sigmoid":
        loss = -(1 - label_smoothing) * right - label_smoothing * wrong
    elif kind == "robust":
        loss = (-(1 - label_smoothing) * right + label_smoothing * wrong) / (1 - 2 * label_smoothing)
    elif kind == "hinge":
        loss = jax.nn.relu(1 - beta * h)
    elif kind == "ipo":
        loss = jnp.square(h - 1 / (2 * beta))
    else:
        raise ValueError(f"no DPO loss {kind!r}; known: sigmoid, robust, hinge, ipo")
    mean = partial(_mean, weights=weights)
    return mean(loss), {
        "accuracy": mean(h > 0),
        "margin": beta * mean(h),
        "reward_chosen": beta * mean(gain_chosen),
        "reward_rejected": beta * mean(gain_rejected),
    }


def _mean(values: Array, weights: Float[Array, " pairs"] | None) -> Float[Array, ""]:
    return values.mean() if weights is None else (values * weights).sum()
