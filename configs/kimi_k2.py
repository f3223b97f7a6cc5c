"""Kimi K2: supervised fine-tuning with MuonClip, then reinforcement learning with Kimi's own objective.

    python launch/train.py --config=configs/kimi_k2.py[:tiny|full] [--config.sft.steps=500 ...]

The architecture and the chat format are those of the released Kimi-K2-Instruct. Published (Kimi K2, arXiv 2507.20534;
Moonlight, arXiv 2502.16982): Muon in every stage, with momentum .95, five Newton-Schulz iterations, updates of root
mean square .2 and weight decay .1; QK-Clip at 100; the squared residual of rewards centred over their group, summed
over a whole response; no critic; SFT data beside the rollouts against forgetting (PTX); a token budget for each kind of
task, with a penalty for what it cuts off (`rl.budgets`, empty here); a sampling temperature that decays (here it
stays). Not published, and so this project's own: the strength tau, the weight of PTX, group size, learning rates,
batches and lengths.

scale   model                           hardware
tiny    0.4 M weights, 3 layers         a laptop: two CPU cores
full    1,026 B weights, 61 layers      a TPU pod: 512 chips of v5p
"""

from ml_collections import ConfigDict

from posttrain_jax.models import kimi_k2
from posttrain_jax.run.recipe import Recipe, to_config


def get_config(scale: str = "tiny") -> ConfigDict:
    """The recipe at one of the scales above."""
    scales = {"tiny": tiny, "full": full}
    if scale not in scales:
        raise ValueError(f"no scale {scale!r}; there are {', '.join(scales)}")
    return scales[scale]()


def _kimi(scale: str, model) -> ConfigDict:
    """What both scales share."""
    c = to_config(Recipe(name="kimi_k2", family="kimi_k2", scale=scale, model=model))
    c.optimizer.name = "muonclip"
    c.rl.objective.name = "k2"
    c.rl.objective.ptx_weight = 0.1
    return c


def tiny() -> ConfigDict:
    """Minutes on a laptop. Six demonstrations in ten guess: docs/tiny.md says what that shows."""
    c = _kimi("tiny", kimi_k2.TINY)
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
    c.rl.objective.ptx_rows = 4
    c.rl.optimizer.learning_rate = 5e-4
    c.rl.optimizer.warmup_steps = 5
    c.rl.optimizer.weight_decay = 0.0
    return c


def full() -> ConfigDict:
    """The released architecture on a pod: a layer's experts are more than a chip holds, so tokens travel to them."""
    c = _kimi("full", kimi_k2.INSTRUCT)
    c.variant = "instruct"
    c.precision.compute = "bfloat16"
    c.precision.remat = "full"
    c.mesh.fsdp = 8
    c.mesh.expert = 32
    c.mesh.context = 2
    c.optimizer.newton_schulz_dtype = "bfloat16"
    c.optimizer.momentum_dtype = "bfloat16"
    c.tasks.max_level = 9

    c.sft.steps = 2000
    c.sft.rows = 256
    c.sft.microbatch_rows = 256
    c.sft.length = 16384
    c.sft.optimizer.learning_rate = 1e-5
    c.sft.optimizer.warmup_steps = 100

    c.rollout.sharded = True
    c.rollout.slots = 4096
    c.rollout.max_prompt = 2048
    c.rollout.max_response = 14336
    c.rollout.decode_chunk = 64
    c.rollout.prefill_batch = 512

    c.rl.steps = 1000
    c.rl.prompts = 256
    c.rl.group_size = 16
    c.rl.minibatches = 4
    c.rl.length = 16384
    c.rl.microbatch_rows = 256
    c.rl.overlong_buffer = 2048
    c.rl.repetition_window = 3000  # MiniMax-M1 section 3.3: 3,000 tokens in a row above .99
    c.rl.objective.ptx_rows = 256
    c.rl.optimizer.learning_rate = 1e-6

    c.evaluation.problems = 2048
    return c
