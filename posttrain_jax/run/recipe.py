"""The whole of a run as one typed value: what `configs/*.py` fill in and what the stages read.

Imports no JAX: a recipe is read, checked and printed before any device starts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from ml_collections import ConfigDict, FieldReference

from posttrain_jax.models.architecture import Architecture
from posttrain_jax.setting import setting


@dataclasses.dataclass(frozen=True)
class Precision:
    """Number formats."""

    params: str = setting("float32", "format weights and optimiser state are kept in", choices=("float32", "bfloat16"))
    compute: str = setting("float32", "format of matrix products", choices=("float32", "bfloat16"))
    remat: str = setting(
        "none",
        "what the backward pass computes again: nothing, all of each layer, all but its attention or matrix products",
        choices=("none", "full", "save_attention", "save_dots"),
    )
    overlap: bool = setting(
        False, "TPU: collectives run inside kernels; of some shapes XLA's compiler dies of it: plan first"
    )
    qat: str = setting(
        "none",
        "quantisation-aware training: routed experts compute as their INT4 form would",
        choices=("none", "int4"),
    )


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each mesh axis; -1 takes what is left."""

    data: int = setting(-1, "replicas of the weights over which the batch is split", minimum=-1)
    fsdp: int = setting(1, "devices over which weights and batch are both split", minimum=1)
    expert: int = setting(1, "devices over which the experts are split", minimum=1)
    tensor: int = setting(1, "devices over which heads and vocabulary are split", minimum=1)
    context: int = setting(1, "devices over which the length of a row is split", minimum=1)


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Verifiable reasoning tasks: what is asked, how hard, and what is held out."""

    names: tuple = setting((), "task types; empty means all of posttrain_jax.data.tasks.TASKS")
    system: str = setting("Think, then answer.", "system message of every prompt")
    max_level: int = setting(3, "hardest difficulty level used (levels start at 0)", minimum=0)
    seed: int = setting(20, "seed of the generators; another seed asks other questions")
    canary_share: float = setting(
        0.0,
        "part of the code tasks that RL asks whose tests nobody can pass; see docs/rewards.md, Alarms",
        minimum=0.0,
        maximum=1.0,
    )
    weights: tuple = setting((), "RL's mixture: a task's share beside the others', 'gcd=2'; unnamed tasks weigh 1")
    schedule: tuple = setting((), "weights that move in a line from RL's first step to its last: 'shop=0:1'")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The algorithm that moves the weights in every stage; rate, decay and clipping are each stage's own."""

    name: str = setting(
        "adamw",
        "adamw, or muon for hidden matrices (adamw for the rest), or muonclip: muon with QK-Clip",
        choices=("adamw", "muon", "muonclip"),
    )
    beta1: float = setting(0.9, "AdamW: decay of the first moment", minimum=0.0, maximum=1.0)
    beta2: float = setting(0.95, "AdamW: decay of the second moment", minimum=0.0, maximum=1.0)
    epsilon: float = setting(1e-15, "AdamW: added to the root of the second moment", minimum=0.0)
    momentum: float = setting(0.95, "Muon: decay of the sum of gradients", minimum=0.0, maximum=1.0)
    nesterov: bool = setting(True, "Muon: look one step of momentum ahead")
    update_rms: float = setting(0.2, "Muon: root mean square of an update, before the learning rate", minimum=0.0)
    newton_schulz_steps: int = setting(5, "Muon: iterations of the orthogonalisation", minimum=1)
    newton_schulz_dtype: str = setting("float32", "Muon: format of its products", choices=("float32", "bfloat16"))
    qk_clip_threshold: float = setting(100.0, "MuonClip: largest attention logit a head may have", minimum=0.0)
    momentum_dtype: str = setting(
        "", "format of the first moment; empty is the weights'", choices=("", "float32", "bfloat16")
    )
    master_weights: bool = setting(False, "float32 copies of the weights that precision.params keeps in bfloat16")
    offload: bool = setting(False, "between updates moments and copies of weights wait in the host's memory")


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast a stage learns."""

    learning_rate: float = setting(1e-3, "peak learning rate", minimum=0.0)
    schedule: str = setting("cosine", "path of the rate after warm-up", choices=("constant", "cosine", "wsd"))
    warmup_steps: int = setting(20, "updates of linear warm-up from zero", minimum=0)
    final_ratio: float = setting(0.1, "learning rate at the end, as a part of the peak", minimum=0.0, maximum=1.0)
    decay_share: float = setting(
        0.2, "part of the updates over which a wsd schedule falls at the end", minimum=0.0, maximum=1.0
    )
    weight_decay: float = setting(0.1, "decoupled weight decay of matrices", minimum=0.0)
    clip_norm: float = setting(1.0, "largest global norm of a gradient; 0 is none", minimum=0.0)


@dataclasses.dataclass(frozen=True)
class Router:
    """What training does to the routers of a mixture of experts, in every stage."""

    freeze: bool = setting(False, "leave routers and their selection biases as they are")
    balance_weight: float = setting(0.0, "weight of the sequence-wise balance loss, for each layer", minimum=0.0)
    bias_rate: float = setting(0.0, "step of the selection biases towards an even load, at an update", minimum=0.0)


@dataclasses.dataclass(frozen=True)
class SFT:
    """Supervised fine-tuning."""

    data: tuple = setting(
        ("tasks",),
        "'tasks', .jsonl or .json files (also .gz), folders or patterns of them, 'tfds:NAME[:SPLIT]'; one or several",
    )
    careful_share: float = setting(
        1.0, "part of the 'tasks' demonstrations worked in steps; the others guess", minimum=0.0, maximum=1.0
    )
    direct_share: float = setting(
        0.0, "part of the 'tasks' demonstrations without thinking: the right answer at once", minimum=0.0, maximum=1.0
    )
    chinese_share: float = setting(
        0.0, "part of the 'tasks' questions that are asked in Chinese, where they can be", minimum=0.0, maximum=1.0
    )
    steps: int = setting(300, "optimiser steps", minimum=0)
    rows: int = setting(16, "packed rows in a global batch", minimum=1)
    microbatch_rows: int = setting(16, "rows in one forward and backward pass; divides rows", minimum=1)
    length: int = setting(256, "tokens in a packed row", minimum=8)
    mtp_weight: float = setting(0.1, "weight of multi-token prediction in the loss, where a model has it", minimum=0.0)
    on_too_long: str = setting("error", "a sample longer than a row: 'error' or 'skip'", choices=("error", "skip"))
    optimizer: Pace = dataclasses.field(default_factory=Pace)


@dataclasses.dataclass(frozen=True)
class Distill:
    """Self-distillation: earlier phases answer their own tasks, and what is right becomes records to fine-tune on."""

    teachers: tuple = setting((), "earlier phases that answer, each with its final weights and its own tasks")
    prompts: int = setting(512, "prompts that each teacher answers, dealt evenly over its tasks and levels", minimum=1)
    samples: int = setting(4, "responses sampled for a prompt", minimum=1)
    most: int = setting(4, "right responses kept of a prompt, at most", minimum=1)
    steps: int = setting(100, "optimiser steps", minimum=0)
    rows: int = setting(16, "packed rows in a global batch", minimum=1)
    microbatch_rows: int = setting(16, "rows in one forward and backward pass; divides rows", minimum=1)
    length: int = setting(256, "tokens in a packed row", minimum=8)
    mtp_weight: float = setting(0.1, "weight of multi-token prediction in the loss, where a model has it", minimum=0.0)
    on_too_long: str = setting("error", "a response longer than a row: 'error' or 'skip'", choices=("error", "skip"))
    optimizer: Pace = dataclasses.field(default_factory=Pace)


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A reward model learned from preference pairs (Bradley-Terry): the policy's decoder with a scalar head."""

    data: str = setting("tasks", "preference pairs: 'tasks' or 'jsonl:PATH' (also .jsonl.gz)")
    steps: int = setting(100, "optimiser steps", minimum=0)
    rows: int = setting(16, "packed rows in a global batch", minimum=1)
    microbatch_rows: int = setting(16, "rows in one forward and backward pass; divides rows", minimum=1)
    length: int = setting(256, "tokens in a packed row; a pair is never split", minimum=16)
    centring: float = setting(0.01, "weight of (r_w + r_l)², which keeps scores around zero", minimum=0.0)
    heldout: int = setting(256, "pairs kept out of training on which the order is judged", minimum=1)
    on_too_long: str = setting("error", "a pair longer than a row: 'error' or 'skip'", choices=("error", "skip"))
    optimizer: Pace = dataclasses.field(default_factory=Pace)


@dataclasses.dataclass(frozen=True)
class DPO:
    """Direct preference optimisation against the weights that the stage began with."""

    data: str = setting("tasks", "preference pairs: 'tasks' or 'jsonl:PATH' (also .jsonl.gz)")
    steps: int = setting(100, "optimiser steps", minimum=0)
    rows: int = setting(16, "packed rows in a global batch", minimum=1)
    microbatch_rows: int = setting(16, "rows in one forward and backward pass; divides rows", minimum=1)
    length: int = setting(256, "tokens in a packed row; a pair is never split", minimum=16)
    kind: str = setting("sigmoid", "the loss", choices=("sigmoid", "robust", "hinge", "ipo"))
    beta: float = setting(0.1, "strength of the tie to the reference", minimum=0.0)
    label_smoothing: float = setting(
        0.0, "share of pairs taken to be the wrong way round (sigmoid, robust)", minimum=0.0, maximum=0.5
    )
    on_too_long: str = setting("error", "a pair longer than a row: 'error' or 'skip'", choices=("error", "skip"))
    optimizer: Pace = dataclasses.field(default_factory=lambda: Pace(learning_rate=1e-4))


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = setting(1.0, "0 is greedy", minimum=0.0)
    top_p: float = setting(1.0, "smallest set of tokens that holds this much probability", minimum=0.0, maximum=1.0)
    top_k: int = setting(0, "keep the k likeliest tokens; 0 keeps all", minimum=0)
    final: float = setting(
        0.0, "RL: temperature at the last step, reached along half a cosine; 0: it stays", minimum=0.0
    )
    plateau: int = setting(
        0, "RL: when so many steps earn no more than as many before, the temperature rises; 0: it stays", minimum=0
    )
    highest: float = setting(1.2, "plateau: highest temperature that is tried", minimum=0.0)
    most_lost: float = setting(
        0.01, "plateau: right responses, as a share of all, that a higher temperature may cost", minimum=0.0
    )
    probes: int = setting(128, "plateau: questions that this is judged by, which are never learned from", minimum=1)

    @property
    def moves(self) -> bool:
        """Whether the temperature changes from step to step."""
        return bool(self.final or self.plateau)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The generation engine."""

    slots: int = setting(64, "sequences decoded together", minimum=1)
    banks: int = setting(1, "parts the slots are split into, a thread for each: CPU cores, or 1 elsewhere", minimum=1)
    max_prompt: int = setting(96, "longest prompt in tokens", minimum=1)
    max_response: int = setting(64, "longest response in tokens", minimum=1)
    decode_chunk: int = setting(16, "tokens decoded between two looks at what has finished", minimum=1)
    prefill_batch: int = setting(8, "prompts prefilled together", minimum=1)
    read_chunk: int = setting(64, "tokens read together of prompts that go on from what is cached", minimum=2)
    draft: bool = setting(False, "speculative decoding by the layer of multi-token prediction, where a model has one")
    beside: bool = setting(
        False, "the last device samples alone, while the others train; with rl.carry_over, on one process"
    )
    sharded: bool = setting(
        False, "all devices decode together, weights and caches split; or each process alone, on its first device"
    )
    int4: bool = setting(False, "routed experts in INT4, in groups of 32 as Kimi K2-Thinking has them")


OBJECTIVES = (
    *("cispo", "grpo", "dapo", "dr_grpo", "gspo", "ppo", "reinforce", "rloo"),
    *("k2", "k1_5", "k2_5"),
)


@dataclasses.dataclass(frozen=True)
class Cispo:
    """MiniMax-M1's: the importance weight is capped, and every token keeps its gradient."""

    max_ratio: float = setting(5.0, "cap of the importance weight, in absolute form", minimum=1.0)
    min_ratio: float = setting(0.0, "floor of the importance weight; 0 is none, as published", minimum=0.0)
    epsilon_high: float = setting(0.0, "cap in the paper's form 1 + epsilon; 0 leaves max_ratio", minimum=0.0)
    mask_low: float = setting(0.0, "tokens with A < 0 and a ratio below 1 - this do not count; 0 is off", minimum=0.0)
    mask_high: float = setting(0.0, "tokens with A > 0 and a ratio above 1 + this do not count; 0 is off", minimum=0.0)


@dataclasses.dataclass(frozen=True)
class Clip:
    """How far a token's ratio may leave 1 before its gradient stops."""

    low: float = setting(0.2, "below 1", minimum=0.0)
    high: float = setting(0.2, "above 1", minimum=0.0)
    dual: float = setting(0.0, "with A < 0, largest ratio that still counts; 0 is no bound", minimum=0.0)


@dataclasses.dataclass(frozen=True)
class ClipHigher:
    """DAPO's: more room above 1 than below."""

    low: float = setting(0.2, "below 1", minimum=0.0)
    high: float = setting(0.28, "above 1", minimum=0.0)
    dual: float = setting(0.0, "with A < 0, largest ratio that still counts; 0 is no bound", minimum=0.0)


@dataclasses.dataclass(frozen=True)
class Gspo:
    """How far a whole response's ratio (the geometric mean of its tokens') may leave 1."""

    low: float = setting(3e-4, "below 1", minimum=0.0)
    high: float = setting(4e-4, "above 1", minimum=0.0)
    per_token: bool = setting(False, "GSPO-token, whose advantages may differ within a response")


@dataclasses.dataclass(frozen=True)
class Ppo:
    """The clipped surrogate with a critic that reads the policy's hidden states, and generalised advantages."""

    low: float = setting(0.2, "how far below 1 a token's ratio still counts", minimum=0.0)
    high: float = setting(0.2, "how far above", minimum=0.0)
    discount: float = setting(1.0, "of later rewards", minimum=0.0, maximum=1.0)
    trace: float = setting(0.95, "lambda of generalised advantages", minimum=0.0, maximum=1.0)
    value_clip: float = setting(0.2, "how far a value may move in a step", minimum=0.0)
    value_weight: float = setting(0.5, "weight of the critic's loss", minimum=0.0)


@dataclasses.dataclass(frozen=True)
class Kimi:
    """Moonshot's regularisation towards the policy that sampled; its strength is not published."""

    tau: float = setting(0.1, "strength, on the log-ratio of a whole response", minimum=0.0)


@dataclasses.dataclass(frozen=True)
class KimiTokens:
    """Kimi K2.5's: token by token; none of its numbers is published."""

    low: float = setting(-0.5, "log-ratio below which a token has no gradient", maximum=0.0)
    high: float = setting(0.5, "log-ratio above which a token has no gradient", minimum=0.0)
    tau: float = setting(0.1, "strength of regularisation, on a token's log-ratio", minimum=0.0)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a policy update maximises. Each name has a section of its own, where it has anything to set."""

    name: str = setting("cispo", "the objective", choices=OBJECTIVES)
    advantages: str = setting(
        "",
        "centred rewards over the deviation of their group or the batch, or as they are (centred), or against the"
        " others (leave_one_out); empty is the objective's own",
        choices=("", "group", "batch", "centred", "leave_one_out"),
    )
    aggregation: str = setting(
        "",
        "from tokens to one loss; empty is the objective's own",
        choices=("", "token_mean", "sequence_mean", "sequence_sum", "prompt_mean"),
    )
    kl_weight: float = setting(0.0, "weight of the divergence from the weights RL began with; 0 is off", minimum=0.0)
    kl_estimate: str = setting("k3", "how it is estimated from single tokens", choices=("k1", "k2", "k3"))
    ptx_weight: float = setting(0.0, "weight of the SFT data's likelihood (Kimi K2); 0 is off", minimum=0.0)
    ptx_rows: int = setting(8, "rows of SFT data in an update", minimum=1)
    sampler_cap: float = setting(
        0.0, "truncated importance sampling: cap of trainer's over sampler's probability; 0 is off", minimum=0.0
    )
    drift_mask: float = setting(
        0.0, "leave out responses with A < 0 that drifted by more nats a token; 0 is off", minimum=0.0
    )
    cispo: Cispo = dataclasses.field(default_factory=Cispo)
    grpo: Clip = dataclasses.field(default_factory=Clip)
    dapo: ClipHigher = dataclasses.field(default_factory=ClipHigher)
    dr_grpo: Clip = dataclasses.field(default_factory=Clip)
    gspo: Gspo = dataclasses.field(default_factory=Gspo)
    ppo: Ppo = dataclasses.field(default_factory=Ppo)
    k2: Kimi = dataclasses.field(default_factory=Kimi)
    k1_5: Kimi = dataclasses.field(default_factory=Kimi)
    k2_5: KimiTokens = dataclasses.field(default_factory=KimiTokens)


@dataclasses.dataclass(frozen=True)
class JudgeEndpoint:
    """A judge in another process, behind OpenAI's chat completions."""

    url: str = setting("", "where it listens, http://…/v1/chat/completions; empty: the policy itself is the judge")
    model: str = setting("", "the model's name there")
    key: str = setting("", "environment variable that holds the key; empty sends none")
    timeout: float = setting(120.0, "seconds of one try", minimum=0.001)
    attempts: int = setting(5, "tries of one request", minimum=1)
    rate: float = setting(0.0, "tries started in a second; 0 is no bound", minimum=0.0)
    concurrency: int = setting(16, "tries at the same time", minimum=1)
    budget: int = setting(0, "tries in the whole run; 0 is no bound", minimum=0)


@dataclasses.dataclass(frozen=True)
class Judge:
    """A model's opinion of the answers, added to what the verifier says."""

    name: str = setting(
        "none",
        "self_critique: win rate in its group (Kimi K2); genrm: grade beside the true answer (MiniMax-M1)",
        choices=("none", "self_critique", "genrm"),
    )
    weight: float = setting(1.0, "of the judge's reward beside the verifier's", minimum=0.0)
    opponents: int = setting(0, "self_critique: responses that each is compared with; 0 is all of its group", minimum=0)
    reference: str = setting(
        "grade",
        "genrm: five grades beside the true answer, or comparison with the worked solution",
        choices=("grade", "compare"),
    )
    clip: float = setting(2.0, "genrm: bound of its rewards in deviations of the batch; 0 is none", minimum=0.0)
    rubrics: tuple = setting((), "the tasks' own rubrics, a sentence each, beside the general ones")
    max_prompt: int = setting(
        1024, "longest question to the policy as judge, in tokens; episodes are cut to it", minimum=1
    )
    max_response: int = setting(256, "longest answer of the judge, in tokens", minimum=1)
    temperature: float = setting(0.0, "the judge's; 0 is greedy", minimum=0.0)
    refresh: int = setting(
        0, "self_critique: pairs of a right and a wrong answer that a step trains the policy to judge", minimum=0
    )
    endpoint: JudgeEndpoint = dataclasses.field(default_factory=JudgeEndpoint)


@dataclasses.dataclass(frozen=True)
class Reward:
    """What a response's reward is made of, before its length shapes it."""

    verifier_weight: float = setting(1.0, "weight of the verifier's reward", minimum=0.0)
    model_weight: float = setting(0.0, "weight of the score of the reward_model stage's model; 0 is off", minimum=0.0)
    domains: tuple = setting((), "other weights in an area or a world: 'logic.model=0.5', 'shop.verifier=2'")
    clip: float = setting(5.0, "largest score, in deviations from the running mean", minimum=0.0)
    length_bound: float = setting(
        0.5, "correlation of score and length above which its slope is taken out; 0 is off", minimum=0.0, maximum=1.0
    )


@dataclasses.dataclass(frozen=True)
class RL:
    """Reinforcement learning from verifiers, or a reward model, or both."""

    steps: int = setting(100, "rollout batches, each followed by its optimiser updates", minimum=0)
    tokens: int = setting(
        0,
        "tokens sampled and trained on, prompts aside, with which the stage ends before its steps; 0 is no bound",
        minimum=0,
    )
    prompts: int = setting(32, "groups with reward variance trained on in a step", minimum=1)
    group_size: int = setting(8, "responses sampled for a prompt", minimum=2)
    max_rounds: int = setting(3, "dynamic sampling: batches of prompts tried to fill a step", minimum=1)
    carry_over: int = setting(
        0, "steps that an unfinished group may go on into; 0: a step waits for its last response", minimum=0
    )
    minibatches: int = setting(2, "off-policy updates on one rollout batch", minimum=1)
    length: int = setting(256, "tokens in a packed training row", minimum=8)
    microbatch_rows: int = setting(8, "rows in one forward and backward pass", minimum=1)
    objective: Objective = dataclasses.field(default_factory=Objective)
    reward: Reward = dataclasses.field(default_factory=Reward)
    mismatch_alarm: float = setting(
        0.1, "mean |log π_trainer - log π_sampler| of a step that is warned of; 0 is off", minimum=0.0
    )
    debug: str = setting(
        "none",
        "rollout_only records what is sampled and trains nothing; train_only trains on what was recorded",
        choices=("none", "rollout_only", "train_only"),
    )
    rollouts: str = setting("", "where rl.debug records steps and finds them; empty is rollouts/ of the run")
    replay_routing: bool = setting(False, "train through the experts that the sampler's tokens went to (R3)")
    format_reward: float = setting(0.1, "reward of a well-formed but wrong answer", minimum=0.0)
    overlong_buffer: int = setting(16, "tokens before the limit over which the length penalty grows", minimum=0)
    overlong_penalty: float = setting(0.5, "penalty at the length limit", minimum=0.0)
    length_reward: float = setting(0.0, "weight of Kimi K1.5's reward of short answers; 0 is off", minimum=0.0)
    budgets: tuple = setting((), "most tokens of an answer, task by task: 'gcd=32', 'aiw=64' (Kimi K2)")
    budget_penalty: float = setting(0.5, "penalty of an answer that its budget cuts off", minimum=0.0)
    repetition_window: int = setting(
        48, "stop after this many tokens in a row above the threshold; 0 is off", minimum=0
    )
    repetition_probability: float = setting(
        0.99, "probability above which a token counts as repeated", minimum=0.0, maximum=1.0
    )
    judge: Judge = dataclasses.field(default_factory=Judge)
    promote_at: float = setting(0.8, "curriculum: pass rate at which a task moves up a level", minimum=0.0, maximum=1.0)
    effort: str = setting(
        "variance",
        "curriculum: of pass rate p, ask by p(1-p), or by failure, 1-p (Kimi K1.5), or all alike",
        choices=("variance", "failure", "uniform"),
    )
    retire_at: float = setting(
        1.0,
        "curriculum: pass rate from which a level is not asked again (ScaleRL: 0.9); 1 never",
        minimum=0.0,
        maximum=1.0,
    )
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    optimizer: Pace = dataclasses.field(default_factory=Pace)

    @property
    def groups(self) -> int:
        """The most groups that a step trains on: of its prompts, and of both orders of its critic's pairs."""
        return self.prompts + 2 * self.judge.refresh


@dataclasses.dataclass(frozen=True)
class Episodes:
    """What an agent may use in a world, beside ``rollout.max_response`` for an answer and the positions of a slot."""

    turns: int = setting(8, "answers", minimum=1)
    tokens: int = setting(0, "sampled tokens in all; 0 is no limit of its own", minimum=0)
    seconds: float = setting(0.0, "time; 0 is no limit. With one, a run does not repeat bit for bit", minimum=0.0)
    penalty: float = setting(0.5, "taken from the reward when one of them has run out", minimum=0.0)
    keep: int = setting(3, "latest tool results that stay when older ones are hidden to make room", minimum=0)
    segments: int = setting(1, "times that the context may be filled; with 1 nothing is hidden", minimum=1)
    thinking: bool = setting(True, "reasoning before an answer")
    reuse: bool = setting(True, "a turn reads what is new in its prompt, and not all of it again")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Held-out greedy pass@1 between the stages."""

    problems: int = setting(256, "held-out problems, spread evenly over tasks and levels", minimum=1)
    every: int = setting(0, "steps of RL between two measures within it; 0: only after a stage", minimum=0)


@dataclasses.dataclass(frozen=True)
class Upkeep:
    """What is written, and how often."""

    checkpoint_every: int = setting(50, "steps between checkpoints; one is always written at a stage's end", minimum=1)
    keep: int = setting(2, "finished checkpoints kept", minimum=2)
    samples_per_step: int = setting(4, "trajectories written to samples.jsonl at an RL step", minimum=0)
    max_bad_steps: int = setting(3, "non-finite steps in a row that end the run", minimum=1)


class Phases(dict):
    """Name of a phase -> its ``kind``, its ``start``, and the sections it changes (`phases`). Frozen by agreement."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(json.dumps(self, sort_keys=True))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A run from a seed to a post-trained model."""

    name: str = setting("minimax_m2", "recipe")
    family: str = setting(
        "minimax_m2",
        "model family: architecture, weight names and chat format",
        choices=("kimi_k2", "glm_4_6", "minimax_m2", "minimax_m1"),
    )
    variant: str = setting("", "variant of the family's chat format, such as Kimi's 'instruct'; empty is its first")
    scale: str = setting("tiny", "size of the recipe", choices=("tiny", "small", "full", "released"))
    seed: int = setting(0, "everything random derives from it", minimum=0)
    stages: tuple = setting(("sft", "rl"), "phases, or 'sft', 'reward_model', 'dpo', 'distill' and 'rl', in order")
    phases: Phases = dataclasses.field(default_factory=Phases)
    tokenizer: str = setting("tiny", "'tiny', 'tools' or a path: tokenizer.json, tiktoken.model, sentencepiece .model")
    weights: str = setting("", "directory of a run or conversion whose weights to start from; empty starts afresh")
    model: Architecture = dataclasses.field(default_factory=Architecture)
    precision: Precision = dataclasses.field(default_factory=Precision)
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    router: Router = dataclasses.field(default_factory=Router)
    tasks: Tasks = dataclasses.field(default_factory=Tasks)
    sft: SFT = dataclasses.field(default_factory=SFT)
    reward_model: RewardModel = dataclasses.field(default_factory=RewardModel)
    dpo: DPO = dataclasses.field(default_factory=DPO)
    distill: Distill = dataclasses.field(default_factory=Distill)
    rollout: Rollout = dataclasses.field(default_factory=Rollout)
    rl: RL = dataclasses.field(default_factory=RL)
    episodes: Episodes = dataclasses.field(default_factory=Episodes)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    run: Upkeep = dataclasses.field(default_factory=Upkeep)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What each of the stages is."""
        return tuple(self.phases.get(name, {}).get("kind", name) for name in self.stages)


def to_config(recipe: Recipe) -> ConfigDict:
    """The recipe as a ConfigDict, for a configuration file to fill in and the command line to override.

    ``sft.data`` takes text as well as a tuple.
    """
    tree = dataclasses.asdict(recipe)
    tree["sft"]["data"] = FieldReference(recipe.sft.data, field_type=object)
    return ConfigDict(tree)


def settings(kind: type = Recipe, prefix: str = "") -> Iterator[tuple[str, type, dataclasses.Field]]:
    """Every settable field below ``kind``, in order, as (dotted path, type, dataclass field)."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        path, inner = prefix + field.name, hints[field.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from settings(inner, f"{path}.")
        elif inner is not Phases:
            yield path, inner, field


def changed(settings: Any, changes: Mapping[str, Any]) -> Any:
    """Settings with the values of a nested mapping in place of their own."""
    values = {
        name: changed(getattr(settings, name), value) if dataclasses.is_dataclass(getattr(settings, name)) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(settings, **values)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping from dotted path to value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
