"""Kimi K2: supervised fine-tuning with MuonClip, then reinforcement learning with Kimi's own objective.

    python launch/train.py --config=configs/kimi_k2.py[:tiny|full][-instruct|-thinking] [--config.sft.steps=500 ...]

The architecture and the chat format are those of the released Kimi-K2-Instruct or, with `-thinking`, Kimi-K2-Thinking,
which reasons between its calls of tools, hundreds of them, and is trained for experts in INT4 and rolled out with them.
`tiny` is the latter unless told otherwise, `full` the former. SFT learns from instructions and from demonstrations in
worlds with tools (`launch/synthesize.py` makes more, for `sft.data`); RL first acts in the worlds, then goes on there
and learns from a gym of verifiable questions, together with the policy's own critique.

Published (Kimi K2, arXiv 2507.20534; Moonlight, arXiv 2502.16982) is what is cited beside the numbers below. Not
published, and so this project's own: the strength tau, the weight of PTX, budgets, penalties and temperatures, group
size, learning rates, batches and lengths. The report trains on worlds, gym and critique at once; here a stage of worlds
alone comes first. At `tiny` there is no critique, for so small a model cannot judge.

scale   model                           hardware
tiny    0.4 M weights, 3 layers         a laptop: two CPU cores
full    1,026 B weights, 61 layers      a TPU pod: 512 chips of v5p
"""

import dataclasses

from ml_collections import ConfigDict

from posttrain_jax.models import kimi_k2
from posttrain_jax.run.recipe import Recipe, to_config

GYM = (
    *("chain_sum", "basic_arithmetic", "products", "gcd", "leg_counting"),
    *("simple_equations", "count_bits", "spell_backward", "aiw", "syllogism"),
)
WORLDS = ("calendar", "files", "database", "bank", "shop")
MODELS = {
    "instruct": {"tiny": kimi_k2.TINY, "full": kimi_k2.INSTRUCT},
    "thinking": {"tiny": dataclasses.replace(kimi_k2.TINY, norm_eps=1e-5), "full": kimi_k2.THINKING},
}


def get_config(scale: str = "tiny") -> ConfigDict:
    """The recipe at one of the scales above."""
    scales = {"tiny": (tiny, "thinking"), "full": (full, "instruct")}
    size, dash, variant = scale.partition("-")
    if size not in scales or (dash and variant not in MODELS):
        raise ValueError(f"no scale {scale!r}; there are {', '.join(scales)}, and each with -instruct or -thinking")
    make, usual = scales[size]
    return make(variant or usual)


def _kimi(scale: str, variant: str, worlds: tuple[str, ...]) -> ConfigDict:
    """What both scales share."""
    c = to_config(Recipe(name="kimi_k2", family="kimi_k2", scale=scale, model=MODELS[variant][scale]))
    c.variant = variant
    c.optimizer.name = "muonclip"  # in every stage; its momentum, iterations, RMS and threshold are the defaults
    c.tasks.names = (*GYM, *worlds)
    c.rl.objective.name = "k2"  # section 3.2.3
    c.rl.objective.k2.tau = 0.1  # ours
    c.rl.objective.ptx_weight = 0.1  # section 3.2.3 has the loss; its weight is ours
    c.rl.budget_penalty = 0.5  # section 3.2.3 has budgets and a penalty; their size is ours
    c.episodes.penalty = 0.5
    c.rl.sampling.temperature = 1.0  # section 3.2.3: it begins high and decays; from where to where is ours
    c.rl.sampling.final = 0.6

    c.stages = ("sft", "agentic", "joint")
    c.phases.agentic = {"kind": "rl", "tasks": {"names": worlds}}
    c.phases.joint = {"kind": "rl", "tasks": {"names": (*GYM, *worlds)}}
    if variant == "thinking":
        c.precision.qat = "int4"  # routed experts in groups of 32, as the released config.json has them
        c.rollout.int4 = True
    return c


def tiny(variant: str) -> ConfigDict:
    """Minutes on a laptop. Six demonstrations in ten guess: docs/tiny.md says what that shows."""
    c = _kimi("tiny", variant, ("register",))
    c.tokenizer = "register"  # declares the world's tool in some 10 tokens: an episode takes 205 at most
    c.tasks.max_level = 1

    # instructions in short rows, then the same with demonstrations of tools in longer ones
    c.stages = ("sft", "tools", "agentic", "joint")
    c.sft.careful_share = 0.4
    c.sft.steps = 1000
    c.sft.rows = 20
    c.sft.microbatch_rows = 20
    c.sft.length = 192
    c.sft.optimizer.learning_rate = 5e-3
    c.phases.sft = {"tasks": {"names": GYM}}
    long = {"rows": 10, "microbatch_rows": 10, "length": 256}
    c.phases.tools = {"kind": "sft", "sft": {**long, "steps": 150, "optimizer": {"learning_rate": 2e-3}}}

    c.rollout.slots = 64
    c.rollout.banks = 2
    c.rollout.max_prompt = 192
    c.rollout.max_response = 64

    c.rl.prompts = 32
    c.rl.group_size = 8
    c.rl.max_rounds = 2
    c.rl.length = 256
    c.rl.microbatch_rows = 14
    c.rl.promote_at = 0.6
    c.rl.objective.ptx_rows = 2
    c.rl.optimizer.learning_rate = 5e-4
    c.rl.optimizer.warmup_steps = 5
    c.rl.optimizer.weight_decay = 0.0

    c.phases.agentic.rl = {"steps": 25, "prompts": 12}
    # of a hundred worked answers to each, none was longer than 39 tokens
    budgets = tuple(f"{name}={48 if name in ('chain_sum', 'basic_arithmetic', 'products') else 56}" for name in GYM)
    c.phases.joint.rl = {"steps": 60, "budgets": budgets}
    return c


def full(variant: str) -> ConfigDict:
    """The released architecture on a pod: a layer's experts are more than a chip holds, so tokens travel to them."""
    c = _kimi("full", variant, WORLDS)
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

    # ours: 8K for what is calculated and 2K for what is said
    c.phases.joint.rl = {
        "budgets": tuple(f"{name}={2048 if name in ('aiw', 'syllogism') else 8192}" for name in GYM),
        "judge": {"name": "self_critique", "opponents": 4, "max_prompt": 8192, "max_response": 2048},  # section 3.2.2
    }
    # K2-Thinking goes on over 200 to 300 calls (its release notes); the other bounds are ours
    turns = 300 if variant == "thinking" else 50
    for phase in (c.phases.agentic, c.phases.joint):
        phase.episodes = {"turns": turns, "tokens": 32768, "segments": 4}
    return c
