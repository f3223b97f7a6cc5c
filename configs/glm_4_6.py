"""GLM-4.6: supervised fine-tuning, three experts, one model distilled from them, and RL with GRPO without KL.

    python launch/train.py --config=configs/glm_4_6.py[:tiny|full][-dpo] [--config.sft.steps=500 ...]

The architecture and the chat format are those of the released GLM-4.6, with multi-token prediction in every supervised
stage. 4.6 has no report of its own: published (GLM-4.5, arXiv 2508.06471) is what is cited beside the numbers below,
and that answers have one length from the start, 64K tokens at `full`. The general expert learns from rules and a model
of preferences, or, with `-dpo`, from the pairs directly.

Not published, and so this project's own: Muon in post-training, the clip range (the usual .2), learning rates, batches,
steps, SFT's length, how much is Chinese, what the opinion weighs, when rewards have levelled off. In the report's hard
stage no prompt is solved in 8 tries and every one in 512; here the curriculum prefers what fails.

scale   model                         hardware
tiny    0.6 M weights, 3 layers       a laptop: two CPU cores
full    357 B weights, 92 layers      a TPU pod: 256 chips of v5p
"""

from ml_collections import ConfigDict

from posttrain_jax.models import glm_4_6
from posttrain_jax.run.recipe import Recipe, to_config

REASONING = ("chain_sum", "basic_arithmetic", "products", "gcd", "simple_equations")
GENERAL = ("leg_counting", "count_bits", "spell_backward", "aiw", "syllogism")
WORLDS = ("calendar", "files", "database", "bank", "shop")


def get_config(scale: str = "tiny") -> ConfigDict:
    """The recipe at one of the scales above; ``-dpo`` behind it trains the general expert on pairs."""
    scales = {"tiny": tiny, "full": full}
    size, dash, variant = scale.partition("-")
    if size not in scales or (dash and variant != "dpo"):
        raise ValueError(f"no scale {scale!r}; there are {', '.join(scales)}, and each with -dpo")
    c = scales[size]()
    if variant == "dpo":
        c.stages = tuple(name for name in c.stages if name != "reward_model")
        c.phases.general = {"kind": "dpo", "start": "sft", "tasks": {"names": GENERAL}}
    return c


def _glm(scale: str, model, worlds: tuple[str, ...]) -> ConfigDict:
    """What both scales share."""
    c = to_config(Recipe(name="glm_4_6", family="glm_4_6", scale=scale, model=model))
    c.optimizer.name = "muon"  # published of pre-training (section 2.4)
    c.tasks.names = (*REASONING, *GENERAL, *worlds)
    c.sft.direct_share = 0.5  # with and without thinking in balance (section 3.1)
    c.sft.chinese_share = 0.3  # ours: that it is bilingual is published, the ratio is not
    c.rl.objective.name = "grpo"
    c.rl.objective.aggregation = "token_mean"  # better than a mean over responses (section 3.2, code RL)
    c.rl.objective.kl_weight = 0.0  # section 3.2
    c.rl.format_reward = 0.0  # function calling: 1 for a right answer in the right form, else 0 (section 3.4)
    c.episodes.turns = 8  # ours

    c.stages = (
        *("sft", "reasoning", "calls", "agent", "reward_model", "general"),
        *("distill", "moderate", "hard"),
    )
    # experts, each from the same start; the agent's begins with demonstrations of its own (section 3)
    c.phases.sft = {"tasks": {"names": (*REASONING, *GENERAL)}}
    c.phases.reasoning = {"kind": "rl", "start": "sft", "tasks": {"names": REASONING}}
    c.phases.calls = {"kind": "sft", "start": "sft", "tasks": {"names": worlds}}
    c.phases.agent = {"kind": "rl", "start": "calls", "tasks": {"names": worlds}}
    # a model of preferences beside the rules (section 3.4); its weight is ours
    c.phases.reward_model = {"start": "sft", "tasks": {"names": GENERAL}}
    c.phases.general = {
        "kind": "rl",
        "start": "sft",
        "tasks": {"names": GENERAL},
        "rl": {"reward": {"model_weight": 0.2}},
    }
    # one model of three, then RL in two stages: prompts of moderate difficulty, then the hardest, 16 responses to each;
    # the temperature rises when rewards level off (section 3.2)
    c.phases.distill = {"start": "sft", "distill": {"teachers": ("reasoning", "agent", "general")}}
    c.phases.moderate = {"kind": "rl", "rl": {"effort": "variance", "sampling": {"plateau": 10}}}
    c.phases.hard = {
        "kind": "rl",
        "rl": {"effort": "failure", "retire_at": 0.9, "group_size": 16, "sampling": {"plateau": 10}},
    }
    return c


def tiny() -> ConfigDict:
    """Minutes on a laptop. Six demonstrations in ten guess: docs/tiny.md says what that shows."""
    c = _glm("tiny", glm_4_6.TINY, ("register",))
    c.tokenizer = "register"  # declares the world's tool in some 30 tokens: an episode takes 178 at most
    c.tasks.max_level = 1

    c.sft.careful_share = 0.4
    c.sft.steps = 1000
    c.sft.rows = 20
    c.sft.microbatch_rows = 20
    c.sft.length = 192
    c.sft.optimizer.learning_rate = 5e-3

    c.rollout.slots = 64
    c.rollout.banks = 2
    c.rollout.max_prompt = 192
    c.rollout.max_response = 64

    c.rl.steps = 40
    c.rl.prompts = 16
    c.rl.group_size = 8
    c.rl.max_rounds = 2
    c.rl.length = 256
    c.rl.microbatch_rows = 14
    c.rl.promote_at = 0.6
    c.rl.optimizer.learning_rate = 5e-4
    c.rl.optimizer.warmup_steps = 5
    c.rl.optimizer.weight_decay = 0.0

    short = {"max_prompt": 128}  # of questions of one turn
    for expert in (c.phases.reasoning, c.phases.general):
        expert.rollout = short
        expert.rl = {**expert.get("rl", {}), "prompts": 32, "length": 192, "microbatch_rows": 20}
    long = {"rows": 12, "microbatch_rows": 12, "length": 192}
    c.phases.calls.sft = {**long, "steps": 200, "optimizer": {"learning_rate": 2e-3}}
    c.phases.agent.rl = {"steps": 25, "prompts": 12}
    c.phases.moderate.rl.steps = 30
    c.phases.hard.rl.update({"steps": 25, "prompts": 8})

    c.reward_model.steps = 100
    c.reward_model.optimizer.learning_rate = 1e-3
    c.dpo.steps = 100
    for pairs in (c.reward_model, c.dpo):
        pairs.length = 256  # a syllogism with its thinking
        pairs.on_too_long = "skip"
    c.distill.prompts = 400
    c.distill.samples = 2
    c.distill.most = 2
    c.distill.steps = 120
    c.distill.rows = 8
    c.distill.microbatch_rows = 8
    c.distill.length = 256
    c.distill.optimizer.learning_rate = 2e-3
    return c


def full() -> ConfigDict:
    """The released architecture on a pod: rows of 64K, each over eight chips; weights come to the tokens."""
    c = _glm("full", glm_4_6.GLM_4_6, WORLDS)
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

    for section in (c.reward_model, c.dpo, c.distill):
        section.steps = 500
        section.rows = section.microbatch_rows = 64
        section.length = 65536
        section.optimizer.learning_rate = 1e-6 if section is c.dpo else 1e-5
    c.distill.prompts = 20000  # ours; four responses to each are published of hard prompts (section 3.1)

    c.evaluation.problems = 2048
    return c
