"""GLM-4.6: supervised fine-tuning with multi-token prediction, then reinforcement learning with GRPO without KL.

    python launch/train.py --config=configs/glm_4_6.py[:tiny|full] [--config.sft.steps=500 ...]

The architecture and the chat format are those of the released GLM-4.6. Published (GLM-4.5, arXiv 2508.06471; 4.6 has no
report of its own): GRPO without a KL term in reasoning RL, a mean over tokens as the loss in code RL, a single stage
at 64K tokens of output, 16 responses to a hard prompt, a curriculum by difficulty; and of pre-training Muon with
momentum .95, five Newton-Schulz iterations and updates of root mean square .2, and .1 as the last weight of
multi-token prediction.
The optimizer of post-training is not published: Muon here too is this project's own choice, as are the clip range
(the usual .2), learning rates, batches and SFT's length. The report raises the sampling temperature when rewards
level off; here it stays.

scale   model                         hardware
tiny    0.6 M weights, 3 layers       a laptop: two CPU cores
full    357 B weights, 92 layers      a TPU pod: 256 chips of v5p
"""

from ml_collections import ConfigDict

from posttrain_jax.models import glm_4_6
from posttrain_jax.run.recipe import Recipe, to_config

REASONING = ("chain_sum", "basic_arithmetic", "products", "gcd", "simple_equations")
GENERAL = ("leg_counting", "count_bits", "spell_backward", "aiw", "syllogism")


def get_config(scale: str = "tiny") -> ConfigDict:
    """The recipe at one of the scales above."""
    scales = {"tiny": tiny, "full": full}
    if scale not in scales:
        raise ValueError(f"no scale {scale!r}; there are {', '.join(scales)}")
    return scales[scale]()


def _glm(scale: str, model) -> ConfigDict:
    """What both scales share."""
    c = to_config(Recipe(name="glm_4_6", family="glm_4_6", scale=scale, model=model))
    c.optimizer.name = "muon"
    c.rl.objective.name = "grpo"
    c.rl.objective.aggregation = "token_mean"

    c.stages = ("sft", "reasoning", "general", "distill", "moderate", "hard")
    c.phases.reasoning = {"kind": "rl", "start": "sft", "tasks": {"names": REASONING}}
    c.phases.general = {"kind": "rl", "start": "sft", "tasks": {"names": GENERAL}}
    c.phases.distill = {"start": "sft", "distill": {"teachers": ("reasoning", "general")}}
    c.phases.moderate = {"kind": "rl", "rl": {"effort": "variance"}}
    c.phases.hard = {"kind": "rl", "rl": {"effort": "failure", "group_size": 16}}
    return c


def tiny() -> ConfigDict:
    """Minutes on a laptop. Six demonstrations in ten guess: docs/tiny.md says what that shows."""
    c = _glm("tiny", glm_4_6.TINY)
    c.tasks.names = (*REASONING, *GENERAL)
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
    """The released architecture on a pod: rows of 64K, each over eight chips; weights come to the tokens."""
    c = _glm("full", glm_4_6.GLM_4_6)
    c.precision.compute = "bfloat16"
    c.precision.remat = "full"
    c.mesh.fsdp = 4
    c.mesh.expert = 8
    c.mesh.context = 8
    c.optimizer.newton_schulz_dtype = "bfloat16"
    c.optimizer.momentum_dtype = "bfloat16"
    c.tasks.max_level = 9

    c.sft.steps = 2000
    c.sft.rows = 64
    c.sft.microbatch_rows = 64
    c.sft.length = 65536
    c.sft.optimizer.learning_rate = 1e-5
    c.sft.optimizer.warmup_steps = 100

    c.rollout.sharded = True
    c.rollout.slots = 256
    c.rollout.max_prompt = 2048
    c.rollout.max_response = 63488
    c.rollout.decode_chunk = 64
    c.rollout.prefill_batch = 256

    c.rl.steps = 1000
    c.rl.prompts = 128
    c.rl.group_size = 16
    c.rl.minibatches = 16
    c.rl.length = 65536
    c.rl.microbatch_rows = 64
    c.rl.overlong_buffer = 4096
    c.rl.repetition_window = 3000  # MiniMax-M1 section 3.3: 3,000 tokens in a row above .99
    c.rl.optimizer.learning_rate = 1e-6

    c.evaluation.problems = 2048
    return c
