"""AdamW as the makers of MiniMax-M1 ran it: betas .9/.95 and an epsilon of 1e-15 (arXiv 2506.13585, section 3.2)."""

from __future__ import annotations

import optax

from posttrain_jax.optim.names import matrices

# Gradients are counted in units of 2^-30. In exact arithmetic that changes nothing; in float32 the square of a gradient
# of 1e-19 is still a normal number, and so is that of 1e9.
UNIT = 2.0**30


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.95,
    epsilon: float = 1e-15,
    weight_decay: float = 0.1,
    clip_norm: float = 1.0,
    momentum_dtype: str | None = None,
) -> optax.GradientTransformation:
    """Clips the global gradient norm, then AdamW; norms and biases (one axis a layer) are not decayed.

    Gradients of RL span 1e-18 to 1e-5, most below 1e-14, so the customary epsilon of 1e-8 would drown them.

    Args:
      learning_rate: a number, or a function of the update's number.
      beta1, beta2: decay of the first and second moment.
      epsilon: added to the root of the second moment.
      weight_decay: decoupled, times the learning rate.
      clip_norm: largest global norm of a gradient; 0 clips nothing.
      momentum_dtype: format of the first moment; None is the weights'.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale(UNIT),
        optax.scale_by_adam(b1=beta1, b2=beta2, eps=epsilon * UNIT, mu_dtype=momentum_dtype),
        optax.add_decayed_weights(weight_decay, mask=matrices),
        optax.scale_by_learning_rate(learning_rate),
    )
