"""What the makers say of the same components, in our words: (what, where), by recipe. What they left out is not here.

"K2" is arXiv 2507.20534, "K1.5" 2501.12599, "K2.5" 2602.02276, "Moonlight" 2502.16982, "K2-Thinking" its model card;
"GLM-4.5" 2508.06471, as GLM-4.6 has no report of its own; "M1" 2506.13585; "M2" 2605.26494.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A statement and its source."""

    said: str
    source: str


RESULT = "result"  # beside the names of components: scores of the released model

PUBLISHED: dict[str, dict[str, Published]] = {
    "kimi_k2": {
        RESULT: Published("AIME 2024 69.6, AIME 2025 49.5, LiveCodeBench v6 53.7, SWE-bench Verified 65.8", "K2"),
        "objective": Published("square of (reward − mean − τ·log-ratio of a whole response); τ not published", "K2"),
        "advantages": Published("reward minus the mean of its group, not over its deviation", "K2"),
        "ties": Published("τ to the policy that sampled; PTX, its weight not published", "K2"),
        "optimizer": Published(
            "Muon in every stage, QK-Clip at 100; in pre-training .519 of AdamW's FLOPs for the same loss;"
            " rates after it not published",
            "K2, Moonlight",
        ),
        "length": Published(
            "a budget for each kind of task and a penalty, numbers not published; alternating with a budget"
            " 25 to 30 % fewer tokens",
            "K2, K2.5",
        ),
        "sampling": Published("the temperature decays; from and to not published", "K2"),
        "curriculum": Published("prompts of moderate pass@k; asked by 1 − success rate", "K2, K1.5"),
        "rewards": Published("verifiers, and pairwise self-critique by rubrics", "K2"),
        "quantization": Published(
            "Thinking: routed experts in INT4, groups of 32, after pre-training; about 2 times as fast to sample",
            "K2-Thinking",
        ),
    },
    "glm_4_6": {
        RESULT: Published(
            "4.5: AIME 2024 91.0, SWE-bench Verified 64.2; 4.6: SWE-bench Verified 68.0", "GLM-4.5, GLM-4.6's card"
        ),
        "objective": Published("GRPO; its clip range not published", "GLM-4.5"),
        "advantages": Published(
            "reward minus the mean of its group; code: mean over tokens 46.5 at step 1,750, over sequences 46.3 at"
            " 2,550",
            "GLM-4.5",
        ),
        "ties": Published("no KL", "GLM-4.5"),
        "optimizer": Published(
            "Muon in pre-training, .95, 5 iterations, updates of .2; after it not published", "GLM-4.5"
        ),
        "updates": Published("hard prompts: 16 responses, then 512", "GLM-4.5"),
        "length": Published("one stage at 64K: AIME 2024 83.4; in stages of growing length 80.6", "GLM-4.5"),
        "sampling": Published(
            "up when the reward levels off, to the largest temperature that costs at most 1 % on validation", "GLM-4.5"
        ),
        "curriculum": Published("moderate, then pass@8 = 0 < pass@512: AIME 2024 from 81.8 to 83.4", "GLM-4.5"),
        "rewards": Published("verifiers; for general chat a preference model, rubrics and rules", "GLM-4.5"),
    },
    "minimax_m1": {
        RESULT: Published("80K: AIME 2024 86.0, SWE-bench Verified 56.0", "M1"),
        "objective": Published(
            "CISPO; reaches DAPO's end in half of the steps (Qwen2.5-32B); its upper bound not published", "M1"
        ),
        "advantages": Published("over the deviation of the group; mean over the group's tokens", "M1"),
        "ties": Published("no KL", "M1"),
        "optimizer": Published("AdamW, betas .9/.95, epsilon 1e-15; rate and decay not published", "M1"),
        "updates": Published("16 updates on a batch; group size not published", "M1"),
        "length": Published(
            "40K, then in five steps to 80K; stop after 3,000 tokens above .99; DAPO's penalty of length", "M1"
        ),
        "curriculum": Published("mathematics of 0 < pass@10 < .9; verifiable first, then general", "M1"),
        "rewards": Published("verifiers with form; GenRM of five grades, or −1/0/+1 against a reference", "M1"),
        "quantization": Published(
            "none told; a head in float32 takes sampler and trainer from .987 to .997 of correlation", "M1"
        ),
    },
    "minimax_m2": {
        RESULT: Published(
            "SWE-bench Verified 69.4; AIME 2025 78 and LiveCodeBench 83 by Artificial Analysis", "MiniMax-M2's card"
        ),
        "objective": Published("CISPO, ratios within [0, 1 + ε]; ε not published", "M2"),
        "advantages": Published("reward to go, minus a baseline of the trajectory", "M2"),
        "updates": Published("responses in a window of .3 of the batch, first in, first out", "M2"),
        "rewards": Published("outcome + process + speed; weights not published", "M2"),
    },
}
NOT_PUBLISHED = Published("not published", "")


def of(maker: str, component: str) -> Published | None:
    """What a recipe's maker says of a component; None where the recipe is nobody's."""
    told = PUBLISHED.get(maker)
    return None if told is None else told.get(component, NOT_PUBLISHED)
