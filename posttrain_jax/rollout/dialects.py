"""How servers are asked for tokens, and told of new weights: our own, vLLM and SGLang."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from posttrain_jax.rollout.request import Request

Body = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a server has said, before anybody has looked whether it can be true.

    Attributes:
      tokens, logprobs: of the response; None where the server does not tell them.
      finish: the server's word for why it ended.
      prompt: the prompt as the server read it, where it says so.
      versions: number of the policy of each token, where it says so.
    """

    tokens: list[int] | None
    logprobs: list[float] | None
    finish: str | None
    prompt: list[int] | None = None
    versions: list[int] | None = None


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One kind of server.

    Attributes:
      path: where completions are asked for.
      ask: the body, of a request and the model's name.
      read: an `Answer` of what came back.
      update: the calls that load new weights in their order, path and body of each, of a checkpoint's path and the
        version.
    """

    path: str
    ask: Callable[[Request, str | None], Body]
    read: Callable[[Mapping[str, Any]], Answer]
    update: Callable[[str, int], list[tuple[str, Body]]]


def _ask_openai(request: Request, model: str | None) -> Body:
    body = {
        "prompt": list(request.prompt),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "logprobs": 0,
        "return_token_ids": True,
    }
    return body | ({} if model is None else {"model": model})


def _read_openai(said: Mapping[str, Any]) -> Answer:
    (choice,) = said["choices"]
    finish = choice.get("stop_reason") if choice.get("stop_reason") == "repetition" else choice.get("finish_reason")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    return Answer(
        choice.get("token_ids"), logprobs, finish, choice.get("prompt_token_ids"), choice.get("policy_versions")
    )


def _ask_sglang(request: Request, _: str | None) -> Body:
    sampling = {
        "max_new_tokens": request.max_tokens,
        "temperature": request.temperature,
        "sampling_seed": request.seed,
    }
    return {"input_ids": list(request.prompt), "sampling_params": sampling, "return_logprob": True}


def _read_sglang(said: Mapping[str, Any]) -> Answer:
    """The ids that stand beside the log-probabilities: other lists may lack the stop token."""
    meta = said["meta_info"]
    pairs = meta.get("output_token_logprobs")
    tokens = None if pairs is None else [pair[1] for pair in pairs]
    logprobs = None if pairs is None else [pair[0] for pair in pairs]
    return Answer(tokens, logprobs, (meta.get("finish_reason") or {}).get("type"))


def _update_vllm(path: str, _: int) -> list[tuple[str, Body]]:
    reload = {"method": "reload_weights", "kwargs": {"weights_path": path}}
    return [("/collective_rpc", reload), ("/reset_prefix_cache", {})]


DIALECTS = {
    "posttrain_jax": Dialect(
        "/v1/completions",
        _ask_openai,
        _read_openai,
        lambda path, version: [("/update_weights", {"path": path, "version": version})],
    ),
    "vllm": Dialect("/v1/completions", _ask_openai, _read_openai, _update_vllm),
    "sglang": Dialect(
        "/generate",
        _ask_sglang,
        _read_sglang,
        lambda path, version: [("/update_weights_from_disk", {"model_path": path, "weight_version": str(version)})],
    ),
}
