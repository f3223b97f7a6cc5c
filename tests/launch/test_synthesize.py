"""Data made by the entry point: killed and typed again it is the same, and training reads it."""

import json
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


def whole_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_killed_synthesis_ends_as_one_left_alone_and_every_line_can_be_used(launcher, tmp_path):
    whole, other = tmp_path / "whole", tmp_path / "other"
    ended = launcher.run("synthesize.py", f"--out={whole}", "--count=400", "--pairs=5")
    assert ended.returncode == 0, ended.stderr
    assert "400 verified combinations" in ended.stdout and "preference pairs" in ended.stdout
    process = launcher.start("synthesize.py", f"--out={other}", "--count=400")
    deadline = time.monotonic() + 60
    while whole_lines(other / "records.jsonl") < 50 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 50 <= whole_lines(other / "records.jsonl") < 400
    assert launcher.run("synthesize.py", f"--out={other}", "--count=400").returncode == 0
    for name in ("records.jsonl", "rejected.jsonl", "report.json", "coverage.svg", "sample.html"):
        assert (other / name).read_bytes() == (whole / name).read_bytes()
    checked = launcher.run("check_data.py", str(whole / "records.jsonl"), str(whole / "pairs.jsonl"))
    assert checked.returncode == 0 and "0 refused" in checked.stdout


def test_evaluation_data_is_left_out(launcher, tmp_path):
    first = tmp_path / "first"
    assert launcher.run("synthesize.py", f"--out={first}", "--count=10", "--worlds=bank").returncode == 0
    asked = json.loads((first / "records.jsonl").read_text().splitlines()[3])["messages"]
    (tmp_path / "held.jsonl").write_text(json.dumps(next(m["content"] for m in asked if m["role"] == "user")) + "\n")
    flags = ["--count=9", "--worlds=bank", f"--evaluation={tmp_path / 'held.jsonl'}"]
    ended = launcher.run("synthesize.py", f"--out={tmp_path / 'second'}", *flags)
    assert ended.returncode == 0, ended.stderr
    assert "in the evaluation data" in ended.stdout


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--worlds=bakn"], "no world 'bakn' that can be varied; the nearest is bank"),
        (["--generator=gpt"], "--generator=gpt: expected procedural or a URL"),
        (["--tools=nowhere.json"], "nowhere.json"),
        (["--count=0"], "--count=0"),
        (["--steps=rephrase"], "--steps=rephrase works on records that are there: name --records=FILE"),
        (["--records=no.jsonl", "--steps=dedupe"], "no step 'dedupe'; the nearest is deduplicate"),
        (["--records=no.jsonl", "--steps=rephrase"], "other words take a model, and --generator=procedural has none"),
        (["--records=nowhere.jsonl"], "nowhere.jsonl is missing"),
        (["--records=no.jsonl", "--threshold=2"], "--threshold=2"),
        (["--records=no.jsonl", "--pairs=3"], "--pairs is of records that are made"),
    ],
)
def test_mistakes_are_one_line(launcher, tmp_path, flags, told):
    ended: subprocess.CompletedProcess = launcher.run("synthesize.py", f"--out={tmp_path / 'out'}", *flags)
    assert ended.returncode == 2 and told in ended.stderr and len(ended.stderr.strip().splitlines()) == 1


class Words(BaseHTTPRequestHandler):
    """A model that says a request again with its words in the other order."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = " ".join(reversed(asked["messages"][1]["content"].strip("`\n").split()))
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": f"<text>{text}</text>"}}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


def test_records_that_are_there_are_worked_over(launcher, tmp_path):
    lines = [{"prompt": f"Say {number} words about {name}", "response": name * 3} for number, name in enumerate("abcd")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    flags = [f"--out={tmp_path / 'out'}", f"--records={tmp_path / 'in.jsonl'}"]
    ended = launcher.run("synthesize.py", *flags)
    assert ended.returncode == 0, ended.stderr
    assert "4 of 5 records kept" in ended.stdout and "dropped: near-duplicate 1" in ended.stdout
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    assert launcher.run("synthesize.py", *flags).returncode == 0
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before
    ended = launcher.run("synthesize.py", *flags, "--threshold=0.9")
    assert ended.returncode == 2 and "threshold=0.8, not 0.9; name another folder" in ended.stderr
    ended = launcher.run("synthesize.py", flags[0], f"--records={tmp_path / 'out'}")
    assert ended.returncode == 2 and "is read from there; name another folder" in ended.stderr

    server = ThreadingHTTPServer(("127.0.0.1", 0), Words)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"--generator=http://127.0.0.1:{server.server_port}/v1"
        flags = [f"--out={tmp_path / 'more'}", flags[1], "--steps=deduplicate,rephrase", "--styles=formally,zh", url]
        ended = launcher.run("synthesize.py", *flags)
    finally:
        server.shutdown()
        server.server_close()
    assert ended.returncode == 0, ended.stderr
    assert "rephrased: formally 2, in Chinese 2" in ended.stdout
    checked = launcher.run("check_data.py", str(tmp_path / "more" / "records.jsonl"))
    assert checked.returncode == 0 and "8 read" in checked.stdout


def test_a_model_that_cannot_be_reached_ends_in_one_line(launcher, tmp_path):
    flags = ["--generator=http://127.0.0.1:9/v1", "--count=1", "--concurrency=1", "--tries=1"]
    ended = launcher.run("synthesize.py", f"--out={tmp_path}", *flags)
    assert ended.returncode == 2 and "the same command goes on from here" in ended.stderr
