"""posttrain_jax.data.chinese: the same numbers and names, asked in Chinese; and demonstrations without thinking."""

import re

import pytest

from posttrain_jax.data import chinese, sources, tasks

NAMES = ("gcd", "aiw", "syllogism")


@pytest.mark.parametrize("name", chinese.WORDINGS)
def test_nothing_that_matters_is_lost(name):
    for level in range(3):
        for index in range(60):
            problem = tasks.problem(name, level, index)
            said = chinese.question(problem)
            assert said is not None, problem.question
            assert re.search("[\u4e00-\u9fff]", said) and not re.search("brother|sister|Solve|Find|Give", said)
            asked = re.sub(r"\(example.*?\)", "", problem.question).replace("1 bits", "").replace("(GCD)", "")
            assert re.findall(r"-?\d+", said.replace("几个 1", "")) == re.findall(r"-?\d+", asked)
            if name == "spell_backward":
                assert said.endswith(asked.split()[-1])


def test_aiw_keeps_who_has_what():
    problem = next(p for i in range(99) if "sisters and she also has" in (p := tasks.problem("aiw", 0, i)).question)
    who, sisters, brothers, other = re.fullmatch(
        r"(\w+) has (\d+) sisters and she also has (\d+) brothers\. How many sisters does (\w+)'s.*", problem.question
    ).groups()
    assert chinese.question(problem) == f"{who}有{sisters}个姐妹和{brothers}个兄弟。{other}的兄弟有几个姐妹？"


def test_a_task_without_a_wording_stays_english():
    assert chinese.question(tasks.problem("syllogism", 0, 0)) is None


def test_shares_of_demonstrations():
    source = sources.open("tasks", names=NAMES, system="S", careful_share=0.5, direct_share=0.4, chinese_share=0.6)
    records = [source[i] for i in range(600)]
    direct = [i for i, record in enumerate(records) if record.get("thinking") is False]
    assert 0.34 < len(direct) / 600 < 0.46
    spoken = [i for i, r in enumerate(records) if re.search("[\u4e00-\u9fff]", r["messages"][1]["content"])]
    assert all(NAMES[i % 3] != "syllogism" for i in spoken) and 0.54 < len(spoken) / 400 < 0.66
    assert 0.3 < len({*direct} & {*spoken}) / len(spoken) < 0.5, "one says nothing of the other"
    for i in range(600):
        problem = tasks.problem(NAMES[i % 3], 0, i // 3)
        system, user, answer = records[i]["messages"]
        assert system["content"] == "S"
        assert user["content"] == (chinese.question(problem) if i in spoken else problem.question)
        if i in direct:
            assert answer == {"role": "assistant", "content": problem.answer}
        else:
            assert answer["reasoning_content"] in (problem.reasoning, sources.GUESSING)


def test_without_shares_the_records_are_as_they_were():
    plain = sources.open("tasks", names=NAMES, careful_share=0.5)
    mixed = sources.open("tasks", names=NAMES, careful_share=0.5, direct_share=0.5)
    assert all("thinking" not in plain[i] for i in range(50))
    assert any(plain[i] == mixed[i] for i in range(50)) and any(plain[i] != mixed[i] for i in range(50))
