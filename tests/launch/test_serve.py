"""launch/serve.py on the weights of a short run."""

import re
import signal
import socket

import pytest

httpx2 = pytest.importorskip("httpx2")
pytest.importorskip("uvicorn")


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def test_a_run_is_served_until_a_signal_and_answers_end_first(launcher, finished):
    port = free_port()
    process = launcher.start("serve.py", f"--workdir={finished}", f"--port={port}", "--name=gcd", "--version=3")
    try:
        line = process.stderr.readline()
        assert re.fullmatch(rf"gcd from .* at http://127.0.0.1:{port}/v1\n", line), line + process.stderr.read()
        client = httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=120, transport=httpx2.HTTPTransport(retries=8)
        )
        body = {"messages": [{"role": "user", "content": "Calculate 3 + 4."}], "seed": 1, "return_token_ids": True}
        said = client.post("/v1/chat/completions", json=body).json()
        assert said["model"] == "gcd" and set(said["choices"][0]["policy_versions"]) == {3}
        updated = client.post("/update_weights", json={"path": str(finished)})
        assert updated.json() == {"success": True, "policy_version": 4}
        again = client.post("/v1/chat/completions", json=body).json()
        assert again["choices"][0]["token_ids"] == said["choices"][0]["token_ids"]
        with client.stream("POST", "/v1/chat/completions", json={**body, "n": 32, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(60) == 0, process.stderr.read()
    finally:
        process.kill()


@pytest.mark.parametrize(
    "arguments, word",
    [
        ([], "--workdir or --config is missing"),
        (["--wokdir=a"], "the nearest is --workdir"),
        (["--config=configs/minimax_m2.py:tiny", "--checkpoint=a", "--workdir=b"], "give one of them"),
        (["--config=configs/minimax_m2.py:tiny", "--checkpoint=/nowhere"], "neither safetensors nor checkpoints/"),
        (["--config=configs/minimax_m2.py:tiny", "--config.rollout.slot=3"], "rollout.slots"),
    ],
)
def test_mistakes_are_one_line(launcher, arguments, word):
    ended = launcher.run("serve.py", *arguments)
    assert ended.returncode == 2 and word in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
