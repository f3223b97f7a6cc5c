"""A sandbox and formula processes for all tests of a session."""

import pytest

from posttrain_jax.rewards.graders.maths import Maths
from posttrain_jax.rewards.sandbox.sandbox import Sandbox, SandboxUnavailable


@pytest.fixture(scope="session")
def sandbox():
    try:
        opened = Sandbox.open(workers=2)
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def maths():
    with Maths(workers=1, seconds=2.0) as opened:
        yield opened
