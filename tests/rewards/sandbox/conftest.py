"""Sandboxes of both kinds, opened once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from posttrain_jax.rewards.sandbox.sandbox import Sandbox, SandboxUnavailable


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox of each kind that this machine has."""
    if request.param == "bubblewrap" and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    try:
        opened = Sandbox.open(request.param, workers=4)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with opened:
        yield opened
