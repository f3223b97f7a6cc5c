"""Responses as an update sees them: packed in rows, and the same ones a row each for the oracles."""

import jax
import numpy as np
import pytest

LENGTHS = ((5, 4), (3, 2, 4), (9,))  # trained tokens of the responses in each row
PROMPT = 2  # untrained tokens before each
WIDTH = 16


@pytest.fixture
def packed():
    """Rows of several responses, drifted from the sampler; one advantage a response, of either sign."""
    dice = np.random.default_rng(0)
    shape = (len(LENGTHS), WIDTH)
    old = -dice.exponential(1.0, shape).astype(np.float32)
    new = old + dice.normal(0.0, 0.6, shape).astype(np.float32)
    mask, advantages = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    segments = np.zeros(shape, np.int32)
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for number, length in enumerate(lengths, 1):
            segments[row, at : at + PROMPT + length] = number
            mask[row, at + PROMPT : at + PROMPT + length] = 1
            advantages[row, at : at + PROMPT + length] = dice.normal()
            at += PROMPT + length
    return {
        "logprobs": new,
        "old_logprobs": old,
        "advantages": advantages,
        "mask": mask,
        "segment_ids": segments,
    }


def responses(batch):
    """Each response's trained tokens: (row, columns) in order."""
    for row, segments in enumerate(batch["segment_ids"]):
        for number in sorted(set(segments) - {0}):
            yield row, np.flatnonzero((segments == number) & (batch["mask"][row] > 0))


@pytest.fixture
def value_and_gradient():
    """Loss, gradient to the log-probabilities, and metrics of an objective."""

    def run(objective, batch, **options):
        names = [name for name in batch if name != "logprobs"]
        if "segment_ids" not in objective.__code__.co_varnames:
            names.remove("segment_ids")
        rest = [batch[name] for name in names]
        both = jax.jit(jax.value_and_grad(lambda x: objective(x, *rest, **options), has_aux=True))
        (loss, metrics), gradient = both(batch["logprobs"])
        return float(loss), np.asarray(gradient), {name: float(value) for name, value in metrics.items()}

    return run


@pytest.fixture
def with_weights():
    """The batch with the weights of an aggregation in place of its mask."""
    from posttrain_jax.objectives.aggregation import token_weights

    def run(batch, mode, prompt_ids=None, **options):
        found = list(responses(batch))
        lengths = np.array([len(columns) for _, columns in found])
        ids = np.arange(len(found)) if prompt_ids is None else prompt_ids
        weights = np.asarray(token_weights(lengths, ids, mode, prompts=len(found), **options))
        mask = np.zeros_like(batch["mask"])
        for weight, (row, columns) in zip(weights, found, strict=True):
            mask[row, columns] = weight
        return {**batch, "mask": mask}

    return run


@pytest.fixture
def each_response():
    return responses
