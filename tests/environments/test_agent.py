"""Episodes: what is kept of them token by token, and how they end."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
from scripted import Scripted, answer, call

from posttrain_jax import chat
from posttrain_jax.environments.agent import Agent, Budget, Seeds
from posttrain_jax.environments.environment import EnvironmentFailure, Observation, Step
from posttrain_jax.environments.tools import Toolbox, ToolError, tool

CHATS = {
    "kimi_k2": chat.for_family("kimi_k2", keep_all_thinking=True),
    "kimi_k2 instruct": chat.for_family("kimi_k2", "instruct", keep_all_thinking=True),
    "glm_4_6": chat.for_family("glm_4_6", keep_all_thinking=True),
    "minimax_m2": chat.for_family("minimax_m2", keep_all_thinking=True),
    "minimax_m1": chat.for_family("minimax_m1", keep_all_thinking=True),
}
each_family = pytest.mark.parametrize("family", CHATS)
WIDE = Budget(turns=1000, tokens=10**6, answer=200, context=10**6)


class Counting:
    """The agent calls ``count`` until it has been called ``goal`` times; each call is worth 1."""

    def __init__(self, goal, padding=0):
        self.goal, self.padding, self.calls, self.closed = goal, padding, 0, 0
        self.toolbox = Toolbox([tool(self.count)])

    def count(self, n: int) -> str:
        """Counts."""
        if n != self.calls:
            raise ToolError(f"expected {self.calls}")
        self.calls += 1
        return f"next {self.calls} " + "." * self.padding

    async def reset(self, seed):
        return Observation([{"role": "user", "content": f"count from {seed}"}], self.toolbox.declarations)

    async def step(self, message):
        before = self.calls
        results = await self.toolbox.results(message)
        return Step(results, float(self.calls - before), self.calls >= self.goal or not results, {"calls": self.calls})

    async def close(self):
        self.closed += 1


def counter(family, wrong=()):
    """A policy that counts up, with a wrong number at some turns."""
    turns = itertools.count()
    right = itertools.count()

    def policy(text, request):
        turn = next(turns)
        number = 99 if turn in wrong else next(right)
        return answer("", call("count", f"functions.count:{turn}", n=number))

    return Scripted(CHATS[family], policy)


def play(sampler, environment, budget=WIDE, **options):
    return asyncio.run(Agent(sampler, sampler.chat, budget, **options).play(environment, Seeds(0, 0)))


@each_family
def test_two_hundred_calls_are_one_conversation_token_by_token(family):
    sampler, environment = counter(family, wrong=(5,)), Counting(205)
    episode = play(sampler, environment)
    assert (episode.ended, episode.reward, environment.calls, environment.closed) == ("done", 205.0, 205, 1)
    assert len(sampler.requests) == 206
    (segment,) = episode.segments
    tools = environment.toolbox.declarations
    assert "error: expected 5" in [m["content"] for m in episode.messages if m["role"] == "tool"]
    # the same tokens as the whole conversation written at once, which ends with the last answer
    whole, mask = sampler.chat.encode(episode.messages, tools)
    last = max(i for i, trained in enumerate(mask) if trained) + 1
    assert segment.tokens.tolist() == whole[:last]
    assert segment.mask.tolist() == [bool(trained) for trained in mask[:last]]
    # and every prompt is a beginning of it, with its answer's probabilities where the answer is
    for number, (request, turn) in enumerate(zip(sampler.requests, segment.turns, strict=True)):
        assert list(request.prompt) == whole[: turn.start]
        expected = np.random.default_rng(request.seed).uniform(-3, 0, turn.end - turn.start).astype(np.float32)
        np.testing.assert_array_equal(segment.logprobs[turn.start : turn.end], expected)
        assert set(segment.versions[turn.start : turn.end]) == {number + 1}
    assert not segment.logprobs[~segment.mask].any() and set(segment.versions[~segment.mask]) == {-1}
    assert len({request.seed for request in sampler.requests}) == len(sampler.requests)


@each_family
def test_old_results_are_hidden_when_the_context_is_full(family):
    sampler = counter(family)
    sample = len(
        sampler.chat.encode([{"role": "user", "content": "count from 0"}], Counting(1).toolbox.declarations)[0]
    )
    budget = Budget(turns=100, tokens=10**6, answer=150, context=sample + 2500, keep=2)
    episode = play(sampler, Counting(12, padding=400), budget)
    assert episode.ended == "done" and len(episode.segments) > 1
    for segment in episode.segments:
        assert len(segment) <= budget.context and segment.turns[-1].end == len(segment)
    assert sum(len(segment.turns) for segment in episode.segments) == 12
    texts = [sampler.chat.tokenizer.decode(segment.tokens) for segment in episode.segments]
    assert "(hidden)" not in texts[0] and texts[0].count("." * 400) > 2
    for before, after in itertools.pairwise(episode.segments):
        first = sampler.chat.tokenizer.decode(after.tokens[: after.turns[0].start])
        assert first.count("." * 400) == 2 and first.count("(hidden)") >= 1
        # answers of the segment before stand in this one as they were sampled, and are not trained twice
        for turn in before.turns:
            sampled = before.tokens[turn.start : turn.end].tobytes()
            assert sampled in after.tokens[: after.turns[0].start].tobytes()
    assert all("hidden" not in message["content"] for message in episode.messages)


def test_the_latest_results_are_never_hidden():
    sampler = counter("kimi_k2")
    room = len(sampler.chat.encode([{"role": "user", "content": "count from 0"}], Counting(1).toolbox.declarations)[0])
    episode = play(sampler, Counting(9, padding=400), Budget(100, 10**6, 150, room + 1300, keep=5))
    assert episode.ended == "context" and len(episode.segments) == 1
    assert "(hidden)" not in sampler.chat.tokenizer.decode(episode.segments[0].tokens)


BUDGETS = {
    "turns": Budget(3, 10**6, 200, 10**6),
    "tokens": Budget(1000, 150, 200, 10**6),
    "answer": Budget(1000, 10**6, 4, 10**6),
    "context": Budget(1000, 10**6, 200, 900),
    "seconds": Budget(1000, 10**6, 200, 10**6, seconds=6.0),
}


@pytest.mark.parametrize("ended", BUDGETS)
def test_a_budget_that_runs_out_is_penalised(ended):
    environment = Counting(200)
    ticks = itertools.count()
    episode = play(counter("minimax_m2"), environment, BUDGETS[ended], clock=lambda: float(next(ticks)))
    assert episode.ended == ended
    assert episode.reward == environment.calls - 0.5
    assert environment.closed == 1
    assert sum(segment.mask.sum() for segment in episode.segments) <= BUDGETS[ended].tokens
    assert environment.calls == {"turns": 3, "seconds": 5}.get(ended, environment.calls)


@each_family
def test_a_malformed_call_ends_the_episode_with_nothing(family):
    speaker = CHATS[family]
    broken = {
        "kimi_k2": "<think>t</think><|tool_calls_section_begin|>count(1)<|tool_calls_section_end|>",
        "kimi_k2 instruct": "<|tool_calls_section_begin|>count(1)<|tool_calls_section_end|>",
        "glm_4_6": "\n<think>t</think>\n<tool_call>count(1)",
        "minimax_m2": "t\n</think>\n\n<minimax:tool_call>\ncount(1)</minimax:tool_call>",
        "minimax_m1": "<tool_calls>\ncount(1)\n</tool_calls>",
    }[family]
    turns = iter([answer("", call("count", "functions.count:0", n=0)), None])

    def policy(text, request):
        return next(turns) or [*speaker.tokenizer.encode_with_specials(broken), speaker.stop_tokens[0]]

    episode = play(Scripted(speaker, policy), Counting(9))
    assert (episode.ended, episode.reward, list(episode.rewards)) == ("format", 0.0, [1.0])
    assert episode.info["errors"]


def test_other_reasons_of_a_sampler_are_told():
    class Repeating(Scripted):
        async def complete(self, request):
            completion = await super().complete(request)
            return type(completion)(completion.tokens, completion.logprobs, "repetition")

    episode = play(Repeating(CHATS["kimi_k2"], lambda text, request: answer("la la")), Counting(9))
    assert (episode.ended, episode.reward) == ("repetition", -0.5)


def test_many_at_once_are_what_each_is_alone():
    speaker = CHATS["minimax_m2"]

    def policy(text, request):
        """Takes 1 to 4 calls by its seed alone."""
        if request.seed % 4 == 0:
            return answer("enough")
        return answer("", call("count", n=text.count("next")), thought=str(request.seed))

    def agent():
        return Agent(Scripted(speaker, policy), speaker, WIDE)

    seeds = [Seeds(task, 7 * task + group) for task in range(6) for group in range(4)]
    together = agent()
    makers = [lambda: Counting(50)] * len(seeds)
    episodes = asyncio.run(together.play_all(makers, seeds, concurrency=5))
    assert together.sampler.most == 5
    assert len({len(episode.messages) for episode in episodes}) > 3
    for pair, episode in zip(seeds, episodes, strict=True):
        alone = asyncio.run(agent().play(Counting(50), pair))
        assert alone.messages == episode.messages
        for left, right in zip(alone.segments, episode.segments, strict=True):
            np.testing.assert_array_equal(left.tokens, right.tokens)
            np.testing.assert_array_equal(left.logprobs, right.logprobs)


def test_an_environment_that_breaks_ends_all_and_each_is_closed():
    class Broken(Counting):
        async def step(self, message):
            raise RuntimeError("the world is gone")

    made = [Counting(10**9), Broken(1), Counting(10**9)]
    policy = lambda text, request: answer("", call("count", n=text.count("next")))  # noqa: E731
    agent = Agent(Scripted(CHATS["minimax_m2"], policy), CHATS["minimax_m2"], WIDE)
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(agent.play_all([lambda e=e: e for e in made], [Seeds(0, 0)] * 3, concurrency=3))
    assert [str(error) for error in caught.value.exceptions] == ["the world is gone"]
    assert [environment.closed for environment in made] == [1, 1, 1]


def test_an_environment_that_breaks_down_is_no_reward():
    from posttrain_jax.data.tasks import Problem
    from posttrain_jax.stages.playing import Played

    class Breaking(Counting):
        def count(self, n: int) -> str:
            """Counts."""
            if self.calls == 2:
                raise EnvironmentFailure("no sandbox")
            return super().count(n)

    class Never(Counting):
        async def reset(self, seed):
            raise EnvironmentFailure("no sandbox")

    for environment, turns in ((Breaking(9), 3), (Never(9), 0)):
        sampler = counter("minimax_m2")
        episode = play(sampler, environment)
        assert (episode.ended, episode.reward, len(sampler.requests)) == ("infrastructure", 0.0, turns)
        verdict = Played(Problem("w", 0, 0, "", "", "", {}), episode, episode.reward).verdict
        assert verdict.infrastructure and verdict.reason == "no sandbox" and environment.closed == 1
