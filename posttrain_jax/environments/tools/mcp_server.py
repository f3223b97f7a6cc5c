"""The tools of an MCP server, over its standard input and output; needs ``pip install "posttrain_jax[mcp]"``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from posttrain_jax.environments.tools.tool import Tool, ToolError

if TYPE_CHECKING:
    from mcp import ClientSession  # pyright: ignore[reportMissingImports]


@contextlib.asynccontextmanager
async def mcp_tools(command: str, *arguments: str, env: Mapping[str, str] | None = None) -> AsyncIterator[list[Tool]]:
    """Starts a server and gives its tools; it is ended with the context.

    The server runs as a process of this machine, with this user's rights: start only what you trust.

    Args:
      command: the program.
      *arguments: its arguments.
      env: variables added to the few that it inherits.
    """
    from mcp import ClientSession, StdioServerParameters, stdio_client  # pyright: ignore[reportMissingImports]

    server = StdioServerParameters(command=command, args=list(arguments), env=dict(env) if env else None)
    async with stdio_client(server) as (reading, writing), ClientSession(reading, writing) as session:
        await session.initialize()
        yield await _listed(session)


async def _listed(session: ClientSession) -> list[Tool]:
    from mcp.types import PaginatedRequestParams  # pyright: ignore[reportMissingImports]

    tools: list[Tool] = []
    page = await session.list_tools()
    while True:
        for found in page.tools:
            function = _Remote(session, found.name)
            tools.append(Tool(found.name, found.description or "", found.input_schema, function))
        if not page.next_cursor:
            return tools
        page = await session.list_tools(params=PaginatedRequestParams(cursor=page.next_cursor))


class _Remote:
    """A tool that the server runs."""

    def __init__(self, session: ClientSession, name: str):
        self._session, self._name = session, name

    async def __call__(self, /, **arguments: Any) -> str:
        """The text of what came back.

        Raises:
          ToolError: the server says that the call failed.
        """
        result = await self._session.call_tool(self._name, arguments)
        text = "\n".join(part.text if part.type == "text" else f"[{part.type}]" for part in result.content)
        if result.is_error:
            raise ToolError(text)
        return text
