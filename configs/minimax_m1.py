"""MiniMax-M1: supervised fine-tuning, then reinforcement learning with CISPO, both over rows of 128K tokens.

    python launch/train.py --config=configs/minimax_m1.py[:tiny|full] [--config.sft.steps=500 ...]

The architecture and the chat format are those of the released MiniMax-M1: seven lightning layers to one of softmax.
Published (MiniMax-M1, arXiv 2506.13585): CISPO with 16 updates on a batch of responses, AdamW with betas .9/.95 and
epsilon 1e-15, the head in float32, an overlong penalty, an early stop of repetition after 3,000 tokens above .99,
dynamic sampling, prompts of fitting difficulty; outputs of 40K tokens, then in five steps up to 80K. The cap of the
importance weight, group size, learning rates, weight decay and batches are not published, and so this project's own.
So is the length at full scale: prompt and response may fill a whole row of 131,072 tokens.

scale   model                         hardware
tiny    0.6 M weights, 4 layers       a laptop: two CPU cores
full    456 B weights, 80 layers      a TPU pod: 512 chips of v5p
"""

from ml_collections import ConfigDict

from posttrain_jax.models import minimax_m1
from posttrain_jax.run.recipe import Recipe, to_config


def get_config(scale: str = "tiny") -> ConfigDict:
    """The recipe at one of the scales above."""
    scales = {"tiny": tiny, "full": full}
    if scale not in scales:
        raise ValueError(f"no scale {scale!r}; there are {', '.join(scales)}")
    return scales[scale]()


def tiny() -> ConfigDict:
    """Minutes on a laptop. Six demonstrations in ten guess: docs/tiny.md says what that shows."""
    c = to_config(Recipe(name="minimax_m1", family="minimax_m1", scale="tiny", model=minimax_m1.TINY))
    c.tasks.names = (
        *("chain_sum", "basic_arithmetic", "products", "gcd", "leg_counting"),
        *("simple_equations", "count_bits", "spell_backward", "aiw", "syllogism"),
    )
    c.tasks.max_level = 1

    c.sft.careful_share = 0.4
    c.sft.steps = 1100
    c.sft.rows = 20
    c.sft.microbatch_rows = 20
    c.sft.length = 192
    c.sft.optimizer.learning_rate = 5e-3

    c.rollout.slots = 64
    c.rollout.banks = 2
    c.rollout.max_prompt = 128
    c.rollout.max_response = 64

    c.rl.steps = 80
    c.rl.prompts = 32
    c.rl.group_size = 8
    c.rl.max_rounds = 2
    c.rl.length = 192
    c.rl.microbatch_rows = 20
    c.rl.promote_at = 0.6
    c.rl.optimizer.learning_rate = 5e-4
    c.rl.optimizer.warmup_steps = 5
    c.rl.optimizer.weight_decay = 0.0
    return c


def full() -> ConfigDict:
    """The released architecture on a pod: a row of 131,072 tokens over sixteen chips, 8,192 on each."""
    c = to_config(Recipe(name="minimax_m1", family="minimax_m1", scale="full", model=minimax_m1.RELEASED))
    c.precision.compute = "bfloat16"
    c.precision.remat = "full"
    c.mesh.fsdp = 8
    c.mesh.expert = 4
    c.mesh.context = 16
    c.optimizer.momentum_dtype = "bfloat16"
    c.tasks.max_level = 9

    c.sft.steps = 2000
    c.sft.rows = 32
    c.sft.microbatch_rows = 32
    c.sft.length = 131072
    c.sft.optimizer.learning_rate = 1e-5
    c.sft.optimizer.warmup_steps = 100

    c.rollout.sharded = True
    c.rollout.slots = 1024
    c.rollout.max_prompt = 2048
    c.rollout.max_response = 129024
    c.rollout.decode_chunk = 64
    c.rollout.prefill_batch = 512

    c.rl.steps = 1000
    c.rl.prompts = 64
    c.rl.group_size = 16
    c.rl.minibatches = 16
    c.rl.length = 131072
    c.rl.microbatch_rows = 32
    c.rl.overlong_buffer = 4096
    c.rl.repetition_window = 3000  # section 3.3: 3,000 tokens in a row above .99
    c.rl.optimizer.learning_rate = 1e-6

    c.evaluation.problems = 2048
    return c
