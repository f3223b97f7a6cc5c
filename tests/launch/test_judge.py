"""The main job with a judge elsewhere: a killed run asks for nothing twice, and ends as one left alone."""

import json
import re
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Judge(ThreadingHTTPServer):
    """The longer answer wins; every fifth question is refused when it is asked first."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answered, self.seen, self.refused, self.lock = [], set(), 0, threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)["messages"][1]["content"]
        _, _, _, a, _, b, _ = asked.split(re.search("^`{3,}$", asked, re.MULTILINE)[0])
        with self.server.lock:
            new = body not in self.server.seen
            self.server.seen.add(body)
            refused = new and len(self.server.seen) % 5 == 0
            self.server.refused += refused
            self.server.answered += [] if refused else [body]
        said = json.dumps({"choices": [{"message": {"content": f"Verdict: {'A' if len(a) > len(b) else 'B'}"}}]})
        self.send_response(503 if refused else 200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *_):
        """Says nothing on the terminal."""


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Judge()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_killed_run_pays_its_judge_once_and_ends_the_same(launcher, judge, same_end, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = [
        "--config.rl.judge.name=self_critique",
        "--config.rl.judge.weight=0.5",
        f"--config.rl.judge.endpoint.url=http://127.0.0.1:{judge.server_port}/v1/chat/completions",
    ]
    ended = launcher.train(whole, *settings)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["stage"] == "rl"]
    assert len(steps) == 8 and any("judge_consistent" in line for line in steps)
    assert all(line["judge_failed"] == 0.0 for line in steps if "judge_failed" in line)
    asked = list(judge.answered)
    assert len(set(asked)) == len(asked) > 20 and judge.refused > 0

    judge.answered.clear()
    half = len(asked) // 2
    launcher.interrupt(killed, signal.SIGKILL, lambda: len(judge.answered) > half, *settings)
    assert len(judge.answered) < len(asked)
    ended = launcher.train(killed, *settings)
    assert ended.returncode == 0, ended.stderr
    same_end(killed, whole)
    lost = len(judge.answered) - len(set(judge.answered))
    assert set(judge.answered) == set(asked) and lost <= 16, "only what was under way may be asked again"


OPINIONS = [
    f"--config.{setting}"
    for setting in """
    stages=sft stages=reward_model stages=rl sft.steps=12 rl.steps=5 run.checkpoint_every=1
    tokenizer=tools tasks.names=register model.max_length=320 sft.length=320 rl.length=320
    rollout.slots=4 rollout.banks=2 rollout.decode_chunk=2 rollout.max_prompt=256 rollout.max_response=64
    rl.carry_over=1 rl.judge.name=self_critique rl.judge.weight=0.5 rl.judge.max_prompt=900
    reward_model.steps=4 reward_model.rows=4 reward_model.microbatch_rows=2 reward_model.length=320
    reward_model.on_too_long=skip reward_model.heldout=16 rl.reward.model_weight=0.5
""".split()
]


@pytest.mark.slow
def test_episodes_that_are_carried_over_are_judged_and_scored_and_a_kill_changes_nothing(launcher, judge, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = [*OPINIONS, f"--config.rl.judge.endpoint.url=http://127.0.0.1:{judge.server_port}/v1/chat/completions"]
    ended = launcher.train(whole, *settings)
    assert ended.returncode == 0, ended.stderr

    def steps(workdir):
        path = workdir / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        found = [json.loads(line) for line in text.splitlines(True) if line[-1] == "\n"]
        return [line for line in found if line["stage"] == "rl"]

    found = steps(whole)
    assert len(found) == 5 and all(line["judge_failed"] == 0.0 and "score" in line for line in found)
    assert any("reward/register" in line for line in found) and any(line["fresh"] < 1.0 for line in found)
    samples = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    told = [one for one in samples if one["stage"] == "rl" and one["task"] == "register"]
    assert told and all({"verifier", "model", "judge"} == one["parts"].keys() for one in told)

    launcher.interrupt(killed, signal.SIGKILL, lambda: len(steps(killed)) >= 2, *settings)
    ended = launcher.train(killed, *settings)
    assert ended.returncode == 0 and "resumed at rl step" in ended.stdout, ended.stderr
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
