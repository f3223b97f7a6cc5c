"""Environments of the package verifiers, played by our agent: its own tools, user, stops and rewards; our tokens."""

import asyncio
import builtins
import re
from pathlib import Path

import numpy as np
import pytest
from scripted import Scripted, answer, call

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.data import tasks
from posttrain_jax.environments import worlds
from posttrain_jax.environments.agent import Agent, Budget, Seeds
from posttrain_jax.errors import UserError

PACKAGES = Path(__file__).with_name("packages")


@pytest.fixture
def packages(monkeypatch):
    pytest.importorskip("verifiers.v1")
    monkeypatch.syspath_prepend(str(PACKAGES))
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES))  # its tool servers are processes of their own
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    worlds.world.cache_clear()


def play(name, policy, family="minimax_m2", seeds=(3,), turns=8):
    tokenizer = tokenizers.load("tiny", chats.FORMATS[family].special_tokens)
    chat = chats.for_family(family, tokenizer=tokenizer)
    sampler = Scripted(chat, policy)
    agent = Agent(sampler, chat, Budget(turns=turns, tokens=9000, answer=2000, context=9000))
    place = worlds.world(name)
    made = [lambda: place.make(0)] * len(seeds)
    episodes = asyncio.run(agent.play_all(made, [Seeds(seed, seed) for seed in seeds], concurrency=4))
    return episodes, sampler, chat


def adds(prompt, request):
    """Calls the tool, and says what it said."""
    said = re.findall(r"<response>(.*?)</response>|## Return of \S+\n(\d+)", prompt, re.DOTALL)
    if said:
        return answer("".join(said[-1]).strip())
    a = re.findall(r"(\d+) \+ 5\?", prompt)[-1]
    return answer("", call("adder_add", "functions.adder_add:0", a=int(a), b=5))


@pytest.mark.parametrize("family", ["minimax_m2", "kimi_k2"])
def test_tools_rewards_and_tokens(packages, family):
    seeds = (3, 4, 5)
    episodes, sampler, chat = play("verifiers:vf_sums", adds, family, seeds)
    for seed, episode in zip(seeds, episodes, strict=True):
        asked = worlds.world("verifiers:vf_sums").question(0, seed)
        system, user, called, result, last = episode.messages
        assert (system["content"], user["content"]) == ("Say the number.", asked)
        assert result["role"] == "tool" and int(result["content"]) == int(asked.split()[0]) + 5
        assert last["content"] == result["content"] and called["tool_calls"]
        assert episode.ended == "done" and episode.reward == 1.5
        assert episode.info["rewards"] == {"right": 1.0, "short": 0.5} and episode.rewards == [0.0, 1.5]
        (segment,) = episode.segments  # what was sampled stands where it was sampled, token by token
        begun = segment.tokens.tolist()
        own = [request for request in sampler.requests if list(request.prompt) == begun[: len(request.prompt)]]
        assert len(own) == 2 and len(segment.turns) == 2
        sampled = np.concatenate([segment.tokens[turn.start : turn.end] for turn in segment.turns])
        assert chat.tokenizer.decode(sampled.tolist()).count(last["content"]) >= 1


def test_a_stop_condition_ends_the_episode_with_what_was_earned(packages):
    def never(prompt, request):
        return answer("", call("adder_add", f"functions.adder_add:{prompt.count('adder_add')}", a=1, b=1))

    ((episode,), *_) = play("verifiers:vf_sums", never)
    assert episode.ended == "done" and episode.info["stop"] == "third"
    assert sum(message["role"] == "assistant" for message in episode.messages) == 3
    assert episode.reward == episode.info["rewards"]["right"] + episode.info["rewards"]["short"]


def test_what_the_model_does_wrong_with_a_tool_is_told_to_it(packages):
    def wrong(prompt, request):
        return answer("7") if "error: no tool 'sub'" in prompt else answer("", call("sub", "functions.sub:0", a=1))

    ((episode,), *_) = play("verifiers:vf_sums", wrong)
    assert "there are: adder_add" in episode.messages[-2]["content"] and episode.ended == "done"


def test_the_environment_answers_each_turn(packages):
    def halves(prompt, request):
        low, high, guess = 0, 9, 4
        for said in re.findall(r"higher|lower", prompt.split("up to 9")[-1]):
            low, high = (guess + 1, high) if said == "higher" else (low, guess - 1)
            guess = (low + high) // 2
        return answer(str(guess))

    episodes, sampler, _ = play("verifiers:vf_guess", halves, seeds=range(6))
    for episode in episodes:
        turns = sum(message["role"] == "assistant" for message in episode.messages)
        assert episode.ended == "done" and episode.reward == pytest.approx(1 / turns, abs=1e-3)
        assert {message["content"] for message in episode.messages[2:-1:2]} <= {"higher", "lower"}
    assert len({round(episode.reward, 2) for episode in episodes}) > 1
    assert sampler.most > 1, "episodes are played at once"


def test_settings_of_an_environment_stand_behind_its_name(packages):
    assert "up to 3" in worlds.world("verifiers:vf_guess?highest=3").question(0, 1)
    with pytest.raises(UserError, match="no verifiers environment 'vf_guess'.*lowest"):
        worlds.world("verifiers:vf_guess?lowest=3")


def test_an_environment_that_fails_says_nothing_of_the_agent(packages):
    ((episode,), *_) = play("verifiers:vf_guess", lambda prompt, request: answer("seven"))
    assert episode.ended == "infrastructure" and "no number: seven" in episode.info["reason"]


def test_a_budget_that_runs_out_ends_the_episode_there(packages):
    ((episode,), *_) = play("verifiers:vf_guess", lambda prompt, request: answer("99"), turns=2)
    assert episode.ended == "turns" and episode.reward == -0.5


def test_prompts_are_split_as_those_of_any_world(packages):
    name = "verifiers:vf_guess"
    train, heldout = ({worlds.problem(name, 0, i, split).question for i in range(40)} for split in ("train", "heldout"))
    assert train and heldout and not train & heldout
    assert all(tasks.split_of(question) == "heldout" for question in heldout)
    with pytest.raises(UserError, match="has no demonstrations"):
        worlds.demonstration(name, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "told"),
    [("vf_gues", "no verifiers environment 'vf_gues'.*not found"), ("user_sim", "no verifiers environment 'user_sim'")],
)
def test_names_that_are_none(packages, name, told):
    with pytest.raises(UserError, match=f"tasks.names: 'verifiers:{name}': {told}"):
        worlds.world(f"verifiers:{name}")


def test_without_the_package_what_to_install_is_told(monkeypatch):
    real = builtins.__import__

    def missing(name, *more, **options):
        if name.startswith("verifiers"):
            raise ImportError("No module named 'verifiers'")
        return real(name, *more, **options)

    worlds.world.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="pip install 'verifiers>=0.4'"):
        worlds.world("verifiers:vf_sums")
