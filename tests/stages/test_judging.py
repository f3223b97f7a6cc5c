"""A judge's opinion in the reward."""

import asyncio
import dataclasses
import itertools
import json
import types

import jax
import numpy as np
import pytest

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.data import tasks
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.environments import worlds
from posttrain_jax.environments.agent import Episode
from posttrain_jax.errors import UserError
from posttrain_jax.models.decoder import abstract, materialise
from posttrain_jax.parallel.mesh import make_mesh
from posttrain_jax.rewards.judges.judge import JudgeFailed
from posttrain_jax.rewards.judges.rubrics import compare_messages
from posttrain_jax.rewards.verifier import Verdict
from posttrain_jax.rollout.request import Completion
from posttrain_jax.run import validate
from posttrain_jax.run.recipe import RL, Judge, JudgeEndpoint, Tasks
from posttrain_jax.stages import rl
from posttrain_jax.stages.collecting import AtOnce, collect
from posttrain_jax.stages.experience import Trajectory, statistics
from posttrain_jax.stages.judging import Judging, make_judging
from posttrain_jax.stages.optimizing import make_optimizing
from posttrain_jax.stages.playing import Played
from posttrain_jax.stages.setup import make_chat, make_engine, make_model
from posttrain_jax.stages.step import fresh_state

KEY = jax.random.key(1)
CRITIC = Judge(name="self_critique", weight=2.0, max_prompt=4000)
ELSEWHERE = dataclasses.replace(CRITIC, endpoint=JudgeEndpoint(url="http://judge/v1/chat/completions"))


@pytest.fixture(scope="module")
def chat():
    return chats.for_family("minimax_m2", tokenizer=tokenizers.load("tiny"))


class Critic:
    """An engine that writes what ``opinion(*texts)`` says of the texts in the question's fences."""

    def __init__(self, chat, opinion):
        self.chat, self.opinion, self.seeds = chat, opinion, []

    def check(self, request):
        assert request.temperature == 0.0 and request.max_tokens == 256

    def complete(self, weights, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        self.seeds.append(request.seed)
        texts = self.chat.tokenizer.decode(list(request.prompt)).split("```")[1::2]
        said = f"so\n</think>\n\n{self.opinion(*(text.strip() for text in texts))}"
        tokens = [*self.chat.tokenizer.encode_with_specials(said), self.chat.stop_tokens[0]]
        return Completion(np.array(tokens, np.int32), np.zeros(len(tokens), np.float32), "stop")


def longer(question, a, b):
    return f"Verdict: {'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'tie'}"


def group_of(*answers, correct=("7",)):
    problem = tasks.Problem("gcd", 0, 0, "What?", "7", "because", {})
    verdicts = [Verdict(float(answer in correct), answer in correct, answer=answer) for answer in answers]
    return [Trajectory(problem, [1], None, {}, verdict, verdict.reward) for verdict in verdicts]


def rewards(groups):
    return [[t.reward for t in group] for group in groups]


def test_the_policys_win_rate_is_added_to_the_verifiers_reward(chat):
    judging = Judging(CRITIC, chat, engine=Critic(chat, longer))
    groups, tally = judging(None, [group_of("7", "888", "99"), group_of("1", "22", "1")], KEY)
    assert rewards(groups) == [[1.0 - 1.0, 1.0, 0.0], [-0.5, 1.0, -0.5]]
    assert tally.metrics() == {
        "judge_agreement": 0.0,
        "judge_consistent": 1.0,
        "judge_malformed": 0.0,
        "judge_failed": 0.0,
    }
    assert len(set(judging.engine.seeds)) == len(judging.engine.seeds) == 10


def test_the_same_key_asks_with_the_same_seeds(chat):
    one, two, other = (Judging(CRITIC, chat, engine=Critic(chat, longer)) for _ in range(3))
    for judging, key in ((one, KEY), (two, KEY), (other, jax.random.key(2))):
        judging(None, [group_of("7", "888", "99")], key)
    assert one.engine.seeds == two.engine.seeds != other.engine.seeds


def test_a_critic_that_is_not_understood_changes_nothing(chat):
    groups, tally = Judging(CRITIC, chat, engine=Critic(chat, lambda *_: "A, surely"))(
        None, [group_of("7", "8", "9")], KEY
    )
    assert rewards(groups) == [[1.0, 0.0, 0.0]] and not any(t.masked for t in groups[0])
    assert tally.metrics()["judge_malformed"] == 1.0 and "judge_consistent" not in tally.metrics()
    assert tally.metrics()["judge_agreement"] == 0.5


def test_a_question_that_does_not_fit_is_no_verdict(chat):
    judging = Judging(dataclasses.replace(CRITIC, max_prompt=20), chat, engine=Critic(chat, longer))
    groups, tally = judging(None, [group_of("7", "888")], KEY)
    assert rewards(groups) == [[1.0, 0.0]] and tally.malformed == 1 and judging.engine.seeds == []


def test_grades_are_normalised_over_the_batch(chat):
    def grade(question, reference, answer):
        assert reference == "7"
        return f"Verdict: {min(int(answer), 5)}"

    settings = dataclasses.replace(CRITIC, name="genrm", weight=1.0, clip=1.2)
    judging = Judging(settings, chat, engine=Critic(chat, grade))
    groups, tally = judging(None, [group_of("1", "5"), group_of("5", "7", "5")], KEY)
    scores = np.array([0.0, 1.0, 1.0, 1.0, 1.0])
    expected = np.clip((scores - scores.mean()) / scores.std(), -1.2, 1.2) + [0, 0, 0, 1, 0]
    np.testing.assert_allclose([r for mine in rewards(groups) for r in mine], expected)
    assert tally.comparable == 2 and tally.agreed == 1.0, "a right answer and two wrong ones with the same grade"
    assert len(judging.engine.seeds) == 4, "equal answers are graded once"


def test_comparison_with_the_worked_solution(chat):
    settings = dataclasses.replace(CRITIC, name="genrm", reference="compare", weight=1.0, clip=0.0)
    judging = Judging(settings, chat, engine=Critic(chat, longer))
    groups, _ = judging(None, [group_of("1", "a very long answer")], KEY)
    assert rewards(groups) == [[-1.0, 1.0]], "'because 7' is the solution"


class Away:
    """An endpoint that fails for questions with a word in them."""

    def __init__(self, word):
        self.word = word

    async def ask(self, messages, seed):
        if self.word in messages[1]["content"]:
            raise JudgeFailed("HTTP 503")
        return longer(*(text.strip() for text in messages[1]["content"].split("```")[1::2]))


def test_a_response_that_a_judge_elsewhere_could_not_be_asked_about_is_masked(chat):
    groups, tally = Judging(ELSEWHERE, chat, endpoint=Away("888"))(None, [group_of("7", "888", "99")], KEY)
    assert [t.masked for t in groups[0]] == [False, True, False]
    assert rewards(groups) == [[0.0, 0.0, 1.0]] and tally.failed == 2


def test_a_judge_that_cannot_be_asked_at_all_ends_the_run(chat):
    with pytest.raises(UserError, match="judge could not be asked about any response: HTTP 503"):
        Judging(ELSEWHERE, chat, endpoint=Away("What?"))(None, [group_of("7", "8")], KEY)


class Policy:
    """Says the same to every question: three answers, and thinking without end."""

    SAID = ("so\n</think>\n\nfirst", "so\n</think>\n\nlonger", "so\n</think>\n\nthe lost", "never ends")

    def __init__(self, chat, max_prompt=10_000, max_response=200):
        self.chat = chat
        self.limits = types.SimpleNamespace(
            max_prompt=max_prompt, max_response=max_response, positions=max_prompt + max_response
        )

    def generate(self, weights, prompts, key, *, samples, temperature):
        return [[self.completion(text) for text in self.SAID[-samples:]] for _ in prompts]

    def completion(self, text):
        tokens = [*self.chat.tokenizer.encode_with_specials(text), self.chat.stop_tokens[0]]
        return Completion(np.array(tokens, np.int32), np.full(len(tokens), -5.0, np.float32), "stop")


def test_masked_responses_are_sampled_but_not_trained_on(chat):
    settings = RL(prompts=2, group_size=4, format_reward=0.0, overlong_buffer=0)
    found = collect(
        settings,
        Tasks(names=("gcd",), system="", seed=7),
        Policy(chat),
        None,
        chat,
        Curriculum(("gcd",), 0, 0.8, seed=0),
        KEY,
        draws=0,
        judging=Judging(ELSEWHERE, chat, endpoint=Away("the lost")),
    )
    assert len(found.everything) == 8 and [len(group) for group in found.groups] == [3, 3]
    assert all(t.verdict.answer != "the lost" for group in found.groups for t in group)
    assert len({t.reward for t in found.groups[0]}) > 1, "the verifier alone would have dropped these groups"
    assert statistics(found)["judge_failed"] == 0.5


def test_a_key_that_is_not_there_is_told(chat, tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    judge = {"name": "genrm", "endpoint": {"url": "http://127.0.0.1:1/v1/chat/completions", "key": "NO_SUCH_KEY"}}
    recipe = validate.recipe_from({"rl": {"judge": judge}})
    with pytest.raises(UserError, match="rl.judge.endpoint.key='NO_SUCH_KEY'"):
        make_judging(recipe, chat, None, tmp_path)
    assert make_judging(validate.recipe_from({}), chat, None, tmp_path) is None


TINY = {
    "model": dict(layers=1, hidden=16, heads=2, kv_heads=1, head_dim=8, rotary_dim=4, experts=2, experts_per_token=1)
    | {"expert_ffn": 16, "max_length": 2048},
    "tasks": {"names": ("gcd",), "max_level": 0},
    "rollout": {"slots": 8, "max_prompt": 96, "max_response": 32, "decode_chunk": 8, "prefill_batch": 4},
    "rl": dict(steps=1, prompts=2, group_size=3, minibatches=1, length=128, microbatch_rows=2, max_rounds=1),
}


class Speaking(Policy):
    """An engine whose policy has something to say, though its weights are random."""

    def __init__(self, chat, engine):
        super().__init__(chat, engine.limits.max_prompt, engine.limits.max_response)
        self.load = engine.load


def one_step(judge, tmp_path):
    recipe = validate.recipe_from({**TINY, "rl": {**TINY["rl"], "judge": judge}})
    chat, mesh = make_chat(recipe), make_mesh(devices=jax.local_devices()[:1])
    graph, shapes = abstract(make_model(recipe), mesh)
    optimizing = make_optimizing(recipe.rl.optimizer, 1, recipe.model, algorithm=recipe.optimizer)
    engine, curriculum = Speaking(chat, make_engine(recipe, chat, mesh=mesh)), Curriculum(recipe.tasks.names, 0, 0.8, 0)
    judging = make_judging(recipe, chat, mesh, tmp_path)
    (step,) = rl.train(
        recipe.rl,
        optimizing,
        graph,
        fresh_state(materialise(make_model(recipe), shapes), optimizing.optimizer, mesh),
        AtOnce(recipe.rl, recipe.tasks, engine, chat, curriculum, jax.random.key(0), judging=judging),
        curriculum,
        chat,
        rl.Preparation(recipe.rl, engine.limits.max_prompt + engine.limits.max_response, 32, mesh),
        None,
        start=0,
        draws=0,
        used=0,
        samples_per_step=0,
    )
    return step


@pytest.mark.slow
def test_a_step_whose_policy_cannot_judge_yet_is_the_step_without_a_judge(tmp_path):
    """Random weights write no verdict: nothing may come of them, and the same step asks the same."""
    judge = {"name": "self_critique", "max_prompt": 1500, "max_response": 8}
    plain, judged, again = (one_step(settings, tmp_path) for settings in ({}, judge, judge))
    numbers = {name: float(value) for name, value in judged.metrics.items()}
    assert numbers["groups"] == 2.0 and numbers["grad_norm"] > 0
    assert numbers["judge_malformed"] == 1.0 and numbers["judge_failed"] == 0.0
    assert numbers["reward"] == float(plain.metrics["reward"])
    leaves = [[np.asarray(x).tobytes() for x in jax.tree.leaves(s.state.weights)] for s in (plain, judged, again)]
    assert leaves[0] == leaves[1] == leaves[2]
    assert {name: float(value) for name, value in again.metrics.items()} == numbers


def episode_of(problem, *said, reward=1.0):
    """An episode that ends with the last of what was ``said``."""
    messages = [{"role": "user", "content": problem.question}]
    for text in said:
        messages += [{"role": "assistant", "content": text, "reasoning_content": "secret"}]
    return Played(problem, Episode([], messages, reward, [reward], "done", {}), reward)


def test_of_an_episode_the_critic_reads_the_visible_conversation(chat):
    read = []

    def first_wins(question, a, b):
        read.extend((question, a, b))
        return "Verdict: A" if "good" in a else "Verdict: B"

    problem = worlds.problem("register", 0, 3)
    group = [episode_of(problem, "look", "good"), episode_of(problem, "look", "bad", reward=0.0)]
    [judged], tally = Judging(CRITIC, chat, engine=Critic(chat, first_wins))(None, [group], KEY)
    assert [(t.reward, t.opinion) for t in judged] == [(2.0, 1.0), (-1.0, -1.0)]
    assert tally.metrics()["judge_agreement"] == 1.0
    lines = '{"role": "assistant", "content": "look"}\n{"role": "assistant", "content": "%s"}'
    assert set(read) == {problem.question, lines % "good", lines % "bad"} and judged[0].episode is group[0].episode


@pytest.mark.parametrize("tokenizer", ["tiny", "tools"])
def test_long_episodes_are_cut_so_that_any_two_fit_the_critics_prompt(tokenizer):
    chat = chats.for_family("minimax_m2", tokenizer=tokenizers.load(tokenizer))
    problem = worlds.problem("shop", 0, 1)
    texts = ["`" * 40 + "a b\n" * 700, "7" * 3000, 'é{}"\\' * 400, "end "]
    group = [episode_of(problem, "first", text, f"the end {i}") for i, text in enumerate(texts)]
    for most in (1001, 1400):
        judging = Judging(dataclasses.replace(CRITIC, max_prompt=most), chat)
        shown = judging.shown(group)
        assert all("tokens left out" in text and "the end" in text for text in shown[:3]) and "left" not in shown[3]
        for a, b in itertools.permutations(shown, 2):
            asked = compare_messages(problem.question, a, b, judging.rubrics)
            assert len(chat.encode(asked, None, True, add_generation_prompt=True)[0]) <= most


def test_an_episode_is_graded_beside_its_worlds_own_solver(chat):
    def grade(question, reference, answer):
        calls = [json.loads(line) for line in reference.splitlines()]
        assert calls[0]["tool_calls"][0]["name"] == "age" and len(calls) == 5, "two are looked up, and their sum told"
        return f"Verdict: {5 if calls[-1]['content'] in answer else 1}"

    problem = worlds.problem("register", 0, 3)
    record = asyncio.run(worlds.world("register").demonstrate(0, problem.entry["seed"]))
    right = record["messages"][-1]["content"]
    settings = dataclasses.replace(CRITIC, name="genrm", weight=1.0)
    judging = Judging(settings, chat, engine=Critic(chat, grade))
    group = [episode_of(problem, f"It is {right}."), episode_of(problem, "no idea", reward=0.0)]
    [judged], _ = judging(None, [group], KEY)
    assert [t.opinion for t in judged] == [1.0, -1.0]


def test_where_a_world_has_no_solver_its_grader_has_no_opinion(chat, monkeypatch):
    unsolved = dataclasses.replace(worlds.WORLDS["register"], solve=None)
    monkeypatch.setattr(worlds, "world", {"register": unsolved}.__getitem__)
    problem = worlds.problem("register", 0, 3)
    group = [episode_of(problem, "1"), episode_of(problem, "2", reward=0.0)]
    judging = Judging(dataclasses.replace(CRITIC, name="genrm"), chat, engine=Critic(chat, lambda *_: "Verdict: 3"))
    (first, second), tally = judging(None, [group, group_of("7", "8")], KEY)
    assert first == group and [t.opinion for t in second] == [0.0, 0.0], "others are graded as ever"
    assert tally.asked == 2 and len(judging.engine.seeds) == 2
