"""posttrain_jax.run.screen: readable in a log, calm on a terminal, and never steered by what a model wrote."""

import io
import re

import pytest

from posttrain_jax.run.screen import Screen, count, duration, one_line

SAMPLE = {"task": "gcd", "prompt": "gcd of\n6 and 27?", "reasoning": "27%6=3", "expected": "3"}
SUMMARY = {
    "heldout": {"base": 0.004, "sft": 0.412, "rl": 0.38},
    "per_task": {stage: {f"task_{i}": i / 20 for i in range(14)} for stage in ("base", "sft", "rl")},
    "seconds": {"sft": 61.0, "rl": 122.0, "total": 3700.0},
    "first_step_seconds": 14.2,
    "samples": [
        {**SAMPLE, "answer": "3", "correct": True},
        {**SAMPLE, "answer": "second", "correct": True},
        {**SAMPLE, "answer": "\x1b[2J[red]17[/red]", "correct": False},
    ],
    "workdir": "runs/" + "long-" * 30,
    "report": "runs/report.html",
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def printed(act, file=None):
    file = file or io.StringIO()
    act(Screen(file=file))
    return file.getvalue()


def train(screen, stage="sft", total=300, first=1, numbers=None):
    with screen.stage(stage, total) as bar:
        for step in range(first, total + 1):
            bar.update(step, numbers or {"loss": 2.5, "tokens_per_second": 8123.4})


@pytest.mark.parametrize(("total", "most"), [(1, 3), (7, 9), (300, 20), (1001, 20)])
def test_a_log_gets_few_plain_lines_with_the_first_and_the_last(total, most):
    text = printed(lambda screen: train(screen, total=total))
    lines = text.splitlines()
    assert len(lines) <= most
    assert f" 1/{total} " in lines[1] and f" {total}/{total} " in lines[-1]
    assert "\x1b" not in text and "\r" not in text


def test_a_stage_that_tokens_end_is_told_in_tokens():
    def act(screen):
        with screen.stage("rl", 10_000, 2000, unit="token") as bar:
            for step in range(1, 21):
                bar.update(step, {"used_tokens": 2000 + 500 * step})

    lines = printed(act).splitlines()
    assert lines[0].split()[:2] == ["rl", "token"] and "2.5 k/10 k" in lines[1]
    assert "10 k/10 k" in lines[-1] and len(lines) < 20


def test_columns_of_a_log_are_aligned_and_a_missing_number_is_a_dash():
    def act(screen):
        with screen.stage("rl", 2) as bar:
            bar.update(1, {"reward": 0.123456, "pass_rate": 0.5, "unknown": 1.0})
            bar.update(2, {"reward": -0.5, "pass_rate": 1.0, "kl": float("nan"), "tokens_per_second": 1e6})

    head, first, second = printed(act).splitlines()
    for word in ("reward", "pass", "length", "entropy", "KL", "clipped", "tokens/s", "left"):
        assert word in head
    assert [len(line) for line in (first, second)] == [len(head)] * 2
    assert "0.123" in first and "50.0%" in first and "–" in first and "nan" in second


def test_a_resumed_stage_starts_where_it_stands():
    text = printed(lambda screen: train(screen, total=100, first=78))
    assert " 78/100 " in text.splitlines()[1] and " 1/100 " not in text


def test_warnings_and_words_come_through_as_they_are():
    def act(screen):
        with screen.stage("sft", 3) as bar:
            bar.update(1, {})
            screen.warn("[bold]not markup[/bold] " + "x" * 200)
            screen.say("said :smile:")

    text = printed(act)
    assert "warning: [bold]not markup[/bold] " + "x" * 200 + "\n" in text
    assert "said :smile:\n" in text


def test_quiet_prints_nothing():
    file = io.StringIO()
    screen = Screen(quiet=True, file=file)
    screen.header({"recipe": "r"})
    train(screen, total=3)
    screen.warn("w")
    screen.summary(SUMMARY)
    assert file.getvalue() == ""


def test_header():
    facts = {
        "recipe": "minimax_m2, scale tiny, seed 0",
        "devices": "8 × TPU v5",
        "mesh": {"fsdp": 4, "expert": 2},
        "parameters": 1_829_384,
        "active": 913_232,
        "stages": ("sft", "rl"),
        "workdir": "runs/a",
    }
    text = printed(lambda screen: screen.header(facts))
    for words in ("8 × TPU v5", "fsdp 4, expert 2", "1.83 M, 913 k active", "sft → rl", "runs/a"):
        assert words in text
    assert len(text.splitlines()) == 6


def test_summary_fits_a_screen_and_says_what_was_gained():
    text = printed(lambda screen: screen.summary(SUMMARY))
    lines = text.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    for words in ("base 0.4%", "after SFT 41.2% (+40.8)", "after RL 38.0% (-3.2)", "1:01:40", "runs/report.html"):
        assert words in text
    assert all(f"task_{i} " in text for i in range(14))
    assert "incorrect, expected 3" in text and "second" not in text
    assert "\x1b" not in text and "[red]17[/red]" in text
    assert SUMMARY["workdir"] in "".join(line.strip() for line in lines)


@pytest.mark.parametrize(
    "summary", [{}, {"heldout": {"base": 0.5}}, {"samples": [{}], "per_task": {"base": {"a": 1.0}}}]
)
def test_summary_of_what_there_is(summary):
    assert "held-out pass@1" in printed(lambda screen: screen.summary(summary))


def test_many_tasks_are_cut_short():
    per_task = {"base": {f"task_{i:03}": 0.5 for i in range(100)}}
    text = printed(lambda screen: screen.summary({"per_task": per_task}))
    assert "and 80 more tasks" in text and len(text.splitlines()) <= 40


def test_the_numbers_of_many_phases_are_not_cut():
    phases = ("base", "sft", "reasoning", "calls", "agent", "general", "distill", "moderate", "hard")
    per_task = {phase: {f"task_{i:03}": i / 100 for i in range(11)} for phase in phases}
    text = printed(lambda screen: screen.summary({"per_task": per_task}))
    assert all(phase in text for phase in phases) and text.count("10%") == len(phases)


def test_a_terminal_gets_one_bar_and_warnings_above_it(terminal):
    def act(screen):
        screen.header({"recipe": "tiny"})
        with screen.stage("sft", 1000) as bar:
            for step in range(1, 1001):
                bar.update(step, {"loss": 2.5, "tokens_per_second": 8123.4})
            screen.warn("careful")

    text = printed(act, terminal)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "1000/1000" in plain and "loss 2.5000" in plain and "careful" in plain and "done" in plain
    assert plain.count("/1000") < 50  # redrawn by the clock, not by the step
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back


def test_the_cursor_comes_back_after_an_error(terminal):
    def act(screen):
        with screen.stage("sft", 10) as bar:
            bar.update(1, {})
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        printed(act, terminal)
    assert terminal.getvalue().count("\x1b[?25h") == 1


def test_ci_is_a_log_even_with_a_terminal(terminal, monkeypatch):
    monkeypatch.setenv("CI", "true")
    assert "\x1b" not in printed(train, terminal)


def test_an_ascii_stream_is_no_reason_to_stop():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Screen(file=stream).say("8 × TPU")
    stream.flush()
    assert raw.getvalue() == b"8 ? TPU\n"


def test_one_line_leaves_nothing_that_steers_a_terminal():
    assert one_line("a\n\tb\x1b[2Jc\u202e") == "a b\ufffd[2Jc\ufffd"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (1_829_384, "1.83 M"), (229e9, "229 B"), (999_600, "1 M")],
)
def test_count(number, text):
    assert count(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00")])
def test_duration(seconds, text):
    assert duration(seconds) == text
