"""How the package ``verifiers`` has its one agent played: a chat with the task's tools, in this process.

Named to the package by `environments.verifiers`, which has to import it; needs ``pip install verifiers``.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx  # pyright: ignore[reportMissingImports]
import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
from verifiers.v1.dialects.chat import message_to_wire  # pyright: ignore[reportMissingImports]
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp  # pyright: ignore[reportMissingImports]

__all__ = ["Chat"]


class Chat(vf.Harness[vf.HarnessConfig]):
    """Asks the model, runs the tools that it calls, and asks again, until an answer calls none."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: Any,
    ) -> Any:
        """As `verifiers.v1.Harness.launch`, without a program."""
        messages = self._opening(data)
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(httpx.AsyncClient(timeout=None, trust_env=False))
            servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
            tools, places, connections = await connect_mcp({"mcpServers": servers}, stack)
            while True:
                body = {"model": ctx.model, "messages": messages, **({"tools": tools} if tools else {})}
                headers = {"Authorization": f"Bearer {secret}"}
                reply = await client.post(f"{endpoint}/chat/completions", json=body, headers=headers)
                if reply.status_code != 200:  # refused by a stop condition, or broken: the package knows which
                    return vf.ProgramResult(1, "", reply.text)
                message = reply.json()["choices"][0]["message"]
                messages.append(message)
                if not message.get("tool_calls"):
                    return vf.ProgramResult(0, "", "")
                for call in message["tool_calls"]:
                    result = await self._result(call["function"], places, connections)
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})

    def _opening(self, data: Any) -> list[dict[str, Any]]:
        system, prompt = self.resolve_prompt(data)
        said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else map(message_to_wire, prompt or ())
        return [*([{"role": "system", "content": system}] if system else []), *said]

    async def _result(self, function: dict[str, Any], places: dict, connections: dict) -> Any:
        """What a call comes to; what the model did wrong is told to it."""
        name = function["name"]
        if name not in places:
            return f"error: no tool {name!r}; there are: {', '.join(places)}"
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except ValueError as error:
            return f"error: the arguments of {name!r} are not JSON: {error}"
        if not isinstance(arguments, dict):
            return f"error: the arguments of {name!r} are no object"
        return await call_mcp(connections, places, name, arguments)
