"""MiniMax-M2: supervised fine-tuning on reasoning tasks, then reinforcement learning with CISPO.

    python launch/train.py --config=configs/minimax_m2.py[:tiny|tools|small|full] [--config.sft.steps=500 ...]

The backbone is MiniMax-M2's: full softmax attention in every layer and 256 routed experts. MiniMax has not published
the sizes and rates of M2's own post-training, so the reinforcement learning follows what it documents for MiniMax-M1
(arXiv 2506.13585): CISPO, AdamW with betas .9/.95 and epsilon 1e-15, overlong penalty, early stop of repetition,
dynamic sampling and a difficulty curriculum. Learning rates and batch sizes are this project's own choice, and so is
MuonClip at full scale, which keeps one moment where AdamW keeps two.

scale   model                        hardware
tiny    0.5 M weights, 3 layers      a laptop: two CPU cores
tools   the same, in worlds with tools over many turns
small   236 M weights, 12 layers     one GPU, or one TPU host
full    229 B weights, 62 layers     a TPU pod: 128 chips of v5p or more
"""

from ml_collections import ConfigDict

from posttrain_jax.models import minimax_m2
from posttrain_jax.run.recipe import Recipe, to_config


def get_config(scale: str = "tiny") -> ConfigDict:
    """The recipe at one of the scales above."""
    scales = {"tiny": tiny, "tools": tools, "small": small, "full": full}
    if scale not in scales:
        raise ValueError(f"no scale {scale!r}; there are {', '.join(scales)}")
    return scales[scale]()


def tiny() -> ConfigDict:
    """Minutes on a laptop. Six demonstrations in ten guess: docs/tiny.md says what that shows."""
    c = to_config(Recipe(name="minimax_m2", scale="tiny", model=minimax_m2.TINY))
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


def tools() -> ConfigDict:
    """The tiny model as an agent in worlds, whose markup its tokenizer writes in few pieces: docs/tiny.md."""
    c = tiny()
    c.name = "minimax_m2_tools"
    c.tokenizer = "tools"
    c.tasks.names = ("shop", "calendar", "files", "database", "bank")
    c.tasks.max_level = 1

    c.sft.careful_share = 1.0
    c.sft.steps = 300
    c.sft.length = 256

    c.rollout.max_prompt = 192
    c.rollout.max_response = 64

    c.rl.steps = 60
    c.rl.prompts = 16
    c.rl.length = 256
    return c


def small() -> ConfigDict:
    """One accelerator: bfloat16 products, longer answers, harder problems."""
    c = to_config(Recipe(name="minimax_m2", scale="small", model=minimax_m2.SMALL))
    c.precision.compute = "bfloat16"
    c.tasks.max_level = 5

    c.sft.steps = 1000
    c.sft.rows = 64
    c.sft.microbatch_rows = 32
    c.sft.length = 1024
    c.sft.optimizer.learning_rate = 6e-4
    c.sft.optimizer.warmup_steps = 100

    c.rollout.sharded = True
    c.rollout.slots = 256
    c.rollout.max_prompt = 256
    c.rollout.max_response = 512
    c.rollout.decode_chunk = 32
    c.rollout.prefill_batch = 32

    c.rl.steps = 300
    c.rl.prompts = 64
    c.rl.group_size = 16
    c.rl.minibatches = 4
    c.rl.length = 1024
    c.rl.microbatch_rows = 32
    c.rl.overlong_buffer = 64
    c.rl.optimizer.learning_rate = 1e-4

    c.evaluation.problems = 1024
    return c


def full() -> ConfigDict:
    """The released architecture on a pod, 32,768 tokens a chip: weights come to the tokens, and none are sent."""
    c = to_config(Recipe(name="minimax_m2", scale="full", model=minimax_m2.FULL))
    c.precision.compute = "bfloat16"
    c.precision.remat = "full"
    c.precision.overlap = True
    c.mesh.fsdp = 16
    c.mesh.expert = 8
    c.optimizer.name = "muonclip"
    c.optimizer.newton_schulz_dtype = "bfloat16"
    c.optimizer.momentum_dtype = "bfloat16"
    c.tasks.max_level = 9

    c.sft.steps = 2000
    c.sft.rows = 128
    c.sft.microbatch_rows = 128
    c.sft.length = 32768
    c.sft.optimizer.learning_rate = 1e-5
    c.sft.optimizer.warmup_steps = 100

    c.rollout.slots = 512
    c.rollout.max_prompt = 2048
    c.rollout.sharded = True
    c.rollout.max_response = 30720
    c.rollout.decode_chunk = 64
    c.rollout.prefill_batch = 128

    c.rl.steps = 1000
    c.rl.prompts = 128
    c.rl.group_size = 16
    c.rl.minibatches = 16
    c.rl.length = 32768
    c.rl.microbatch_rows = 128
    c.rl.overlong_buffer = 4096
    c.rl.repetition_window = 3000  # MiniMax-M1 section 3.3: 3,000 tokens in a row above .99
    c.rl.optimizer.learning_rate = 1e-6

    c.evaluation.problems = 2048
    return c
