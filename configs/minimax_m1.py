"""MiniMax-M1: supervised fine-tuning, then reinforcement learning with CISPO in steps of area and of length.

    python launch/train.py --config=configs/minimax_m1.py[:tiny|full] [--config.sft.steps=500 ...]

The architecture and the chat format are those of the released MiniMax-M1: seven lightning layers to one of softmax.
Published (arXiv 2506.13585) is what is cited beside the numbers below; also that the head is in float32, as all of
ours are. First come questions that a rule can verify, then general ones are mixed in with a model's opinion of the
answers: at `full` a generative judge, at `tiny`, where none can judge, a Bradley-Terry model. Then answers may grow,
40K, 48K, … 80K tokens, at `tiny` 32, 48, 64, with hard mathematics favoured and what is mastered not asked again.
MiniMax moves on when perplexity has settled and the longest answers fill the window; here every length has its steps.

Not published, and so this project's own: the cap of the importance weight, group size, learning rates, weight decay,
batches, steps, and the weights of areas and opinions.

scale   model                         hardware
tiny    0.6 M weights, 4 layers       a laptop: two CPU cores
full    456 B weights, 80 layers      a TPU pod: 512 chips of v5p
"""

from ml_collections import ConfigDict

from posttrain_jax.models import minimax_m1
from posttrain_jax.run.recipe import Recipe, to_config

# six in ten are mathematics or algorithms, as of the SFT data (section 2)
REASONING = ("chain_sum", "basic_arithmetic", "products", "gcd", "simple_equations", "count_bits")
GENERAL = ("leg_counting", "spell_backward", "aiw", "syllogism")


def get_config(scale: str = "tiny") -> ConfigDict:
    """The recipe at one of the scales above."""
    scales = {"tiny": tiny, "full": full}
    if scale not in scales:
        raise ValueError(f"no scale {scale!r}; there are {', '.join(scales)}")
    return scales[scale]()


def _m1(scale: str, model, lengths: tuple[int, ...]) -> ConfigDict:
    """What both scales share; ``lengths`` are of answers."""
    c = to_config(Recipe(name="minimax_m1", family="minimax_m1", scale=scale, model=model))
    c.tasks.names = (*REASONING, *GENERAL)
    c.optimizer.name = "adamw"
    c.optimizer.beta1, c.optimizer.beta2, c.optimizer.epsilon = 0.9, 0.95, 1e-15  # section 3
    c.rl.objective.name = "cispo"  # section 3; without a divergence
    c.rl.objective.cispo.max_ratio = 5.0  # ours

    first, *longer = lengths
    window = {"max_response": first}
    c.stages = ("sft", "verifiable", "general")
    c.phases.verifiable = {"kind": "rl", "tasks": {"names": REASONING}, "rollout": dict(window)}
    c.phases.general = {
        "kind": "rl",
        # mixed in gradually (section 4); how fast is ours
        "tasks": {"schedule": tuple(f"{task}=0.2:1" for task in GENERAL)},
        "rollout": dict(window),
    }
    for length in longer:  # section 5
        name = f"length_{length}"
        c.stages = (*c.stages, name)
        c.phases[name] = {
            "kind": "rl",
            "tasks": {"weights": tuple(f"{task}=2" for task in REASONING)},
            "rollout": {"max_response": length},
            # easy questions dropped, a smaller norm of gradients; how much is ours
            "rl": {"retire_at": 0.9, "effort": "failure", "optimizer": {"clip_norm": 0.5}},
        }
    return c


def tiny() -> ConfigDict:
    """Minutes on a laptop. Six demonstrations in ten guess: docs/tiny.md says what that shows."""
    c = _m1("tiny", minimax_m1.TINY, (32, 48, 64))
    c.model.max_length = 384  # room for two answers to a syllogism
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

    c.rl.steps = 40
    c.rl.prompts = 32
    c.rl.group_size = 8
    c.rl.max_rounds = 2
    c.rl.length = 192
    c.rl.microbatch_rows = 20
    c.rl.promote_at = 0.6
    c.rl.overlong_buffer = 8
    c.rl.optimizer.learning_rate = 5e-4
    c.rl.optimizer.warmup_steps = 5
    c.rl.optimizer.weight_decay = 0.0

    c.stages = (*c.stages[:2], "reward_model", *c.stages[2:])
    c.reward_model.steps = 100
    c.reward_model.length = 384  # a syllogism with its thinking
    c.reward_model.on_too_long = "skip"
    c.reward_model.optimizer.learning_rate = 1e-3
    c.phases.general.rl = {"reward": {"model_weight": 0.2}}
    return c


def full() -> ConfigDict:
    """The released architecture on a pod: a row of 131,072 tokens over sixteen chips, 8,192 on each."""
    c = _m1("full", minimax_m1.RELEASED, tuple(kilo * 1024 for kilo in (40, 48, 56, 64, 72, 80)))
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
    c.rollout.max_response = 129024  # a row; no phase samples more than 81,920
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

    # general questions: graded beside the true answer in five grades, or worse (section 4); the policy is the judge
    c.phases.general.rl = {"judge": {"name": "genrm", "max_prompt": 8192, "max_response": 2048}}
    return c
