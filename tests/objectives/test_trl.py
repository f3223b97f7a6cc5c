"""The objectives by name against TRL's own `GRPOTrainer._compute_loss`, value and gradient."""

import collections
import types

import jax
import numpy as np
import pytest

from posttrain_jax.objectives.aggregation import token_weights
from posttrain_jax.run.recipe import Cispo, Clip, ClipHigher, Gspo, Objective
from posttrain_jax.stages.policy import advantages_and_aggregation, policy_loss

LENGTHS = np.array([12, 5, 1, 9])
LONGEST = 12

# TRL's settings beside ours
CASES = {
    "cispo": (dict(loss_type="cispo", epsilon_high=5.0), Objective(name="cispo", cispo=Cispo(max_ratio=5.0))),
    "grpo": (dict(loss_type="grpo", epsilon_high=0.2), Objective(name="grpo", grpo=Clip(low=0.2, high=0.2))),
    "grpo, dual": (
        dict(loss_type="grpo", epsilon_high=0.2, delta=1.5),
        Objective(name="grpo", grpo=Clip(low=0.2, high=0.2, dual=1.5)),
    ),
    "dapo": (dict(loss_type="dapo", epsilon_high=0.28), Objective(name="dapo", dapo=ClipHigher(low=0.2, high=0.28))),
    "dr_grpo": (dict(loss_type="dr_grpo", epsilon_high=0.2), Objective(name="dr_grpo")),
    "gspo": (
        dict(loss_type="grpo", epsilon_high=0.3, importance_sampling_level="sequence"),
        Objective(name="gspo", gspo=Gspo(low=0.2, high=0.3)),
    ),
}


class Reached(Exception):
    """The method asks for something that a newer TRL reads."""


class StandIn:
    """Only what the method reads."""

    beta = 0.0
    aux_loss_enabled = False
    top_entropy_quantile = 1.0
    off_policy_mask_threshold = None
    importance_sampling_level = "token"
    epsilon_low = 0.2
    use_vllm = False
    current_gradient_accumulation_steps = 1
    max_completion_length = LONGEST
    model = types.SimpleNamespace(training=True)
    accelerator = types.SimpleNamespace(
        num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    _entropy_bonus_enabled = False

    def __init__(self, torch, logprobs, delta=None, **settings):
        self._torch, self._logprobs = torch, logprobs
        self.args = types.SimpleNamespace(steps_per_generation=1, delta=delta)
        self._metrics = collections.defaultdict(lambda: collections.defaultdict(list))
        self.__dict__.update(settings)

    def _get_per_token_logps_and_entropies(self, *_, **__):
        return self._logprobs, self._torch.zeros_like(self._logprobs), None

    def __getattr__(self, name):
        raise Reached(name)


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_loss_of_trl(case):
    torch = pytest.importorskip("torch", reason="TRL needs torch")
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")
    theirs, ours = CASES[case]
    rng = np.random.default_rng(0)
    old = -rng.exponential(1.0, (4, LONGEST)).astype(np.float32)
    new = old + rng.normal(0.0, 0.5, old.shape).astype(np.float32)
    mask = (np.arange(LONGEST) < LENGTHS[:, None]).astype(np.float32)
    advantages = rng.normal(size=4).astype(np.float32)

    logprobs = torch.tensor(new, requires_grad=True)
    ids = torch.zeros(new.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.tensor(mask)[:, :1],
        "completion_ids": ids,
        "completion_mask": torch.tensor(mask),
        "old_per_token_logps": torch.tensor(old),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(mask).sum(),
    }
    try:
        expected = trainer.GRPOTrainer._compute_loss(StandIn(torch, logprobs, **theirs), None, inputs)
    except Reached as name:
        pytest.skip(f"this TRL's loss reads {name}, which the stand-in lacks")
    expected.backward()

    aggregation = advantages_and_aggregation(ours).aggregation
    each = token_weights(LENGTHS, np.zeros(4, int), aggregation, prompts=1, constant=float(LONGEST))
    batch = {
        "old_logprobs": old,
        "advantages": np.broadcast_to(advantages[:, None], old.shape),
        "segment_ids": np.ones(old.shape, np.int32),
    }
    loss, gradient = jax.value_and_grad(lambda x: policy_loss(ours, x, mask * each[:, None], batch)[0])(new)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, logprobs.grad.numpy(), rtol=1e-5, atol=1e-8)
    assert np.any(gradient)
