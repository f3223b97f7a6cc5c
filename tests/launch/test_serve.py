"""launch/serve.py on a small model's weights."""

import re
import signal
import socket
from pathlib import Path

import config_file
import pytest

from posttrain_jax import hf
from posttrain_jax.run import validate
from posttrain_jax.stages.setup import make_model

httpx2 = pytest.importorskip("httpx2")
pytest.importorskip("uvicorn")


CONFIG = Path(config_file.RECIPES / "minimax_m2.py")
SMALL = {
    **{"model.layers": 2, "model.hidden": 32, "model.heads": 2, "model.kv_heads": 1, "model.head_dim": 16},
    **{"model.rotary_dim": 8, "model.experts": 4, "model.experts_per_token": 2, "model.expert_ffn": 32},
    **{"rollout.slots": 4, "rollout.banks": 1, "rollout.decode_chunk": 8, "rollout.prefill_batch": 2},
}


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def test_a_checkpoint_is_served_until_a_signal_and_answers_end_first(launcher, tmp_path):
    config, _ = config_file.override(CONFIG, "tiny", [(f"config.{key}", str(value)) for key, value in SMALL.items()])
    hf.save(make_model(validate.read(config)[0])(), tmp_path)
    port, settings = free_port(), [f"--config.{key}={value}" for key, value in SMALL.items()]
    flags = f"--checkpoint={tmp_path}", f"--port={port}", "--name=gcd", "--version=3"
    process = launcher.start("serve.py", f"--config={CONFIG}:tiny", *flags, *settings)
    try:
        line = process.stderr.readline()
        assert re.fullmatch(rf"gcd from .* at http://127.0.0.1:{port}/v1\n", line), line + process.stderr.read()
        client = httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=120, transport=httpx2.HTTPTransport(retries=8)
        )
        body = {"messages": [{"role": "user", "content": "Calculate 3 + 4."}], "seed": 1, "return_token_ids": True}
        said = client.post("/v1/chat/completions", json=body).json()
        assert said["model"] == "gcd" and set(said["choices"][0]["policy_versions"]) == {3}
        updated = client.post("/update_weights", json={"path": str(tmp_path)})
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
        ([f"--config={CONFIG}:tiny", "--checkpoint=a", "--workdir=b"], "give one of them"),
        ([f"--config={CONFIG}:tiny", "--checkpoint=/nowhere"], "neither safetensors nor checkpoints/"),
        ([f"--config={CONFIG}:tiny", "--config.rollout.slot=3"], "rollout.slots"),
    ],
)
def test_mistakes_are_one_line(launcher, arguments, word):
    ended = launcher.run("serve.py", *arguments)
    assert ended.returncode == 2 and word in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
