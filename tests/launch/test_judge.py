"""The main job with a judge elsewhere: a killed run asks for nothing twice, and ends as one left alone."""

import json
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
        _, _, _, a, _, b, _ = json.loads(body)["messages"][1]["content"].split("```")
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
