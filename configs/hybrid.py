"""A hybrid: pieces of all three makers' reinforcement learning on the backbone of MiniMax-M2.

    python launch/train.py --config=configs/hybrid.py[:tiny|full] [--config.sft.steps=500 ...]

What `launch/compare.py` has shown so far is one seed at tiny and not to its end, on a base of 22.3 % held out, where
chance moves a share by 6 points (docs/compare.md). MiniMax-M2's pieces stand at 51.6 % after 5 steps and 30 thousand
tokens, and at 51.6 % after 76 steps and 709 thousand; Kimi K2's at 53.9 % after 20 steps and 144 thousand; GLM-4.6's at
44.5 % after 5 steps and 27 thousand. So no objective and no optimizer is ahead by more than chance, and what levels off
is what is asked. The pieces:

* MuonClip (Kimi K2): nothing is lost beside AdamW above, and it keeps one moment where AdamW keeps two. Moonlight
  publishes half of AdamW's FLOPs for the same loss in pre-training.
* CISPO (MiniMax-M1): half of DAPO's steps, as published; ScaleRL (arXiv 2510.13786) chose it too, with advantages over
  the batch's deviation and every prompt weighing the same, as here.
* Prompts by 1 − p of the pass rate p (Kimi K1.5, and GLM-4.5's second stage), and levels retired at .9 (ScaleRL):
  above, 679 thousand tokens asked by p(1 − p) brought nothing more.

Left out: PTX, as six in ten of tiny's demonstrations guess; INT4, which nothing was compared with yet. The hybrid
itself is not measured yet. Sizes and rates are those of configs/minimax_m2.py, and as little published.

scale   model                        hardware
tiny    0.5 M weights, 3 layers      a laptop: two CPU cores
full    229 B weights, 62 layers     a TPU pod: 128 chips of v5p
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

MINIMAX_M2 = runpy.run_path(str(Path(__file__).with_name("minimax_m2.py")))
SCALES = ("tiny", "full")


def get_config(scale: str = "tiny") -> ConfigDict:
    """The recipe at one of the scales above: MiniMax-M2's of the same scale, and in it the pieces."""
    if scale not in SCALES:
        raise ValueError(f"no scale {scale!r}; there are {', '.join(SCALES)}")
    c = MINIMAX_M2["get_config"](scale)
    c.name = "hybrid"
    c.stages, c.phases = ("sft", "rl"), ConfigDict()  # one stage of RL
    if scale == "full":
        c.tasks.names = ()  # every task of one turn, and no world
    c.optimizer.name = "muonclip"
    c.rl.objective.name = "cispo"
    c.rl.objective.advantages = "batch"
    c.rl.objective.aggregation = "prompt_mean"
    c.rl.effort = "failure"
    c.rl.retire_at = 0.9
    return c
