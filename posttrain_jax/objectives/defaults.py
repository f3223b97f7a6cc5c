"""What the makers of each objective take beside it, by name. Imports no JAX."""

from typing import NamedTuple


class Defaults(NamedTuple):
    """What an objective's makers take for its advantages, and from tokens to one loss."""

    advantages: str
    aggregation: str


DEFAULTS = {
    "cispo": Defaults("group", "token_mean"),
    "grpo": Defaults("group", "sequence_mean"),
    "dapo": Defaults("group", "token_mean"),
    "dr_grpo": Defaults("centred", "sequence_sum"),
    "gspo": Defaults("group", "sequence_mean"),
    "ppo": Defaults("centred", "token_mean"),  # the critic's advantages take their place
    "reinforce": Defaults("centred", "token_mean"),
    "rloo": Defaults("leave_one_out", "token_mean"),
    "k2": Defaults("centred", "sequence_mean"),
    "k1_5": Defaults("centred", "sequence_mean"),
    "k2_5": Defaults("centred", "token_mean"),
}
