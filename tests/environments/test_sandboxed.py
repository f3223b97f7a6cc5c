"""An agent's workspace whose programs run in a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from posttrain_jax.environments.tools.sandboxed import Sandboxed
from posttrain_jax.environments.tools.workspace import Workspace
from posttrain_jax.rewards.sandbox.program import Limits
from posttrain_jax.rewards.sandbox.sandbox import Sandbox, SandboxUnavailable


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        opened = Sandbox.open(workers=1)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with opened:
        yield opened


def test_an_agent_edits_runs_and_reads(sandbox: Sandbox):
    workspace = Workspace({"a.py": "x = 1"}, Sandboxed(sandbox), seconds=5)
    assert asyncio.run(workspace.python("import a; print(a.x + 1); open('b.txt', 'w').write('new')")) == "2"
    assert workspace.files == {"a.py": "x = 1", "b.txt": "new"}
    assert asyncio.run(workspace.shell("cat b.txt; rm a.py; exit 3")) == "new\n[exit status 3]"
    assert workspace.files == {"b.txt": "new"}


def test_files_outlive_a_command_that_takes_too_long(sandbox: Sandbox):
    workspace = Workspace({"a": "1"}, Sandboxed(sandbox), seconds=0.5)
    assert asyncio.run(workspace.shell("echo 2 > b; sleep 60")) == "[ended after 0.5 s]"
    assert workspace.files == {"a": "1", "b": "2\n"}


def test_the_limit_that_was_met_is_told(sandbox: Sandbox):
    workspace = Workspace({"a": "1"}, Sandboxed(sandbox, Limits(output=1000)), seconds=5)
    assert "over the limit of output, 1000]" in asyncio.run(workspace.shell("yes"))
    assert workspace.files == {"a": "1"}


def test_a_command_that_nothing_can_run_is_the_agents_mistake(sandbox: Sandbox):
    workspace = Workspace({}, Sandboxed(sandbox), seconds=5)
    assert "zero byte" in asyncio.run(workspace.shell("echo \0"))
    assert "exit status" in asyncio.run(workspace.python("#" * 200_000))
