"""Attacks on the sandbox, by root and by an ordinary user; each gets through a plain subprocess."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "sandbox_attacks.py"
ORDINARY = 1000

_spec = importlib.util.spec_from_file_location("sandbox_attacks", SCRIPT)
assert _spec and _spec.loader
sandbox_attacks = importlib.util.module_from_spec(_spec)
sys.modules["sandbox_attacks"] = sandbox_attacks
_spec.loader.exec_module(sandbox_attacks)
NAMES = [attack.name for attack in sandbox_attacks.ATTACKS]


@functools.cache
def outcomes(kind: str, user: str) -> dict[str, Any]:
    """What became of all attacks."""
    command = [sys.executable]
    if user == "root" and os.geteuid() != 0:
        pytest.skip("this is not root")
    if user == "ordinary" and os.geteuid() == 0:
        # root's own Python may lie where nobody else can read
        python, setpriv = "/usr/bin/python3", shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("there is no setpriv to become an ordinary user with")
        command = [setpriv, "--reuid", str(ORDINARY), "--regid", str(ORDINARY), "--clear-groups", python]
        able = [*command, "-c", f"import sys; assert sys.version_info >= (3, 11); open({str(SCRIPT)!r})"]
        if subprocess.run(able, capture_output=True, cwd="/").returncode:
            pytest.skip(f"an ordinary user has no Python 3.11 at {python}, or cannot read the project")
    ended = subprocess.run([*command, "-B", str(SCRIPT), kind, "--json"], capture_output=True, text=True, cwd="/")
    if "SandboxUnavailable" in ended.stderr:
        pytest.skip(ended.stderr.splitlines()[-1])
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("user", ["root", "ordinary"])
@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_every_attack_is_contained(kind: str, user: str):
    found = outcomes(kind, user)
    assert list(found) == NAMES
    assert {name: each for name, each in found.items() if each["through"] or not each["ran"]} == {}


@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_every_attack_gets_through_a_plain_subprocess(user: str):
    found = outcomes("plain", user)
    assert {name: each for name, each in found.items() if not each["through"] and not each["refused"]} == {}
