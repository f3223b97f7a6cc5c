"""The tools of a server in another process are tools like any other."""

import asyncio
import os
import sys

import pytest

from posttrain_jax.chat.messages import Call
from posttrain_jax.environments.tools import Toolbox
from posttrain_jax.environments.tools.mcp_server import mcp_tools

pytest.importorskip("mcp")

SERVER = '''
from mcp.server import MCPServer

server = MCPServer("shelf")
kept = {}

@server.tool()
def put(self: str, count: int = 1) -> str:
    """Puts things."""
    if count > 9:
        raise ValueError("too many")
    kept[self] = kept.get(self, 0) + count
    return f"{kept[self]} {self}"

server.run()
'''


def test_a_server_over_stdio(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(SERVER)

    async def session():
        path = os.pathsep.join(sys.path)
        async with mcp_tools(sys.executable, str(script), env={"PYTHONPATH": path}) as tools:
            box = Toolbox(tools, seconds=30)
            (declared,) = box.declarations
            assert (declared["function"]["name"], declared["function"]["description"]) == ("put", "Puts things.")
            calls = [{"self": "tea"}, {"self": "tea", "count": 2}, {"self": "tea", "count": 10}, {"count": 1}]
            return [await box.call(Call("put", arguments, None)) for arguments in calls]

    told = asyncio.run(session())
    assert told[:2] == ["1 tea", "3 tea"] and told[3] == "error: argument 'self' is missing"
    assert told[2].startswith("error: ") and "put" in told[2]
