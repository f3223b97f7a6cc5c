"""MiniMax-M2: supervised fine-tuning on reasoning tasks, then reinforcement learning with CISPO.

    python launch/train.py --config=configs/minimax_m2.py[:tiny|tools|small|full] [--config.sft.steps=500 ...]

The backbone is MiniMax-M2's: full softmax attention in every layer and 256 routed experts. MiniMax has not published
the sizes and rates of M2's own post-training, so the reinforcement learning follows what it documents for MiniMax-M1
(arXiv 2506.13585): CISPO, AdamW with betas .9/.95 and epsilon 1e-15, overlong penalty, early stop of repetition,
dynamic sampling and a difficulty curriculum; above `tiny` also its order: questions that a rule verifies first, then
general ones mixed in with a model's opinion of the answers, at `small` a Bradley-Terry model's, at `full` the policy's
own as a generative judge. An agent with tools is trained between the two, where its worlds fit. Learning rates, batch
sizes, steps and weights are this project's own choice, and so is MuonClip at full scale, which keeps one moment where
AdamW keeps two.

scale   model                        hardware
tiny    0.5 M weights, 3 layers      a laptop: two CPU cores
tools   the same, in worlds with tools over many turns
small   236 M weights, 12 layers     one GPU, or one TPU host
full    229 B weights, 62 layers     a TPU pod: 128 chips of v5p or more
"""

from ml_collections import ConfigDict

from posttrain_jax.models import minimax_m2
from posttrain_jax.run.recipe import Recipe, to_config

GENERAL = ("leg_counting", "spell_backward", "aiw", "syllogism")
VERIFIABLE = (
    *("chain_sum", "basic_arithmetic", "products", "gcd", "lcm", "fraction_simplification"),
    *("prime_factorization", "simple_equations", "number_sequence", "count_bits"),
)
WORLDS = ("calendar", "files", "database", "bank", "shop")


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

    c.reward_model.rows = 64
    c.reward_model.microbatch_rows = 32
    c.reward_model.length = 1024
    c.stages = ("sft", "verifiable", "reward_model", "general")
    _verifiable_first(c, {"reward": {"model_weight": 0.2}})

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

    c.tasks.names = (*VERIFIABLE, *GENERAL, *WORLDS)
    c.stages = ("sft", "verifiable", "agent", "general")
    c.phases.agent = {"kind": "rl", "tasks": {"names": WORLDS}, "episodes": {"turns": 100}}
    _verifiable_first(c, {"judge": {"name": "genrm", "max_prompt": 8192, "max_response": 2048}})
    return c


def _verifiable_first(c: ConfigDict, opinion: dict) -> None:
    """RL on what rules verify; then general questions come in, with a model's opinion (MiniMax-M1, section 4)."""
    c.phases.verifiable = {"kind": "rl", "tasks": {"names": VERIFIABLE}}
    schedule = tuple(f"{task}=0.2:1" for task in GENERAL)
    c.phases.general = {"kind": "rl", "tasks": {"names": (*VERIFIABLE, *GENERAL), "schedule": schedule}, "rl": opinion}
