"""A client for any MCP server that runs as a command and speaks over stdio.

The SDK is asynchronous; here each server has one background thread with its own
event loop, and callers stay synchronous. Invariants: every wait is bounded; the
server's process ends on `close`, at the interpreter's exit, and when this
process is killed (its stdin closes, and on Linux the kernel kills it, see
`guard.py`). Left out: resources, prompts, sampling, HTTP.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp_types import INVALID_PARAMS, TextContent, Tool

from openk2.protocols import EnvironmentFailure, ToolError, ToolSpec

GUARD = Path(__file__).with_name("guard.py")
# More than the SDK takes to close stdin, wait, terminate and kill.
_CLOSE_SECONDS = 15.0
_T = TypeVar("_T")


class McpServer:
    """A running server, as an `Environment` over its tools. Raises `EnvironmentFailure` if it does not start."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 30.0,
    ) -> None:
        """`timeout` bounds the start and each call, in seconds."""
        self._parameters = StdioServerParameters(
            command=sys.executable,
            args=["-I", "-S", str(GUARD), str(os.getpid()), *command],
            env=dict(env or {}),
            cwd=cwd,
        )
        self._timeout = timeout
        self._broken = ""
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._serving = self._loop.create_task(self._serve())
        self._client: Client
        self._started: Future[list[Tool]] = Future()
        self._thread = threading.Thread(target=self._run, name="mcp-client", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        try:
            self._tools = self._started.result(timeout)
        except Exception as error:
            self.close()
            raise EnvironmentFailure(f"the MCP server {command[0]!r} did not start: {error!r}") from error

    def declarations(self) -> list[ToolSpec]:
        """The server's tools as it describes them, in OpenAI format."""
        return [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description or "",
                    "parameters": dict(tool.input_schema),
                },
            }
            for tool in self._tools
        ]

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The text of the tool's answer. A server that dies or hangs is an `EnvironmentFailure` from then on."""
        if self._broken:
            raise EnvironmentFailure(self._broken)
        try:
            result = self._wait(self._client.call_tool(name, dict(arguments)))
        except MCPError as error:
            if error.code == INVALID_PARAMS:
                raise ToolError(error.message) from None
            raise self._fail(f"the MCP server failed: {error.message}") from error
        except (TimeoutError, OSError, RuntimeError) as error:
            raise self._fail(f"the MCP server does not answer: {error!r}") from error
        text = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
        if result.is_error:
            raise ToolError(text or "the tool failed")
        return text

    def close(self) -> None:
        """End the server's process and the thread. May be called again."""
        atexit.unregister(self.close)
        self._broken = self._broken or "the MCP server is closed"
        if not self._closing:
            self._closing = True  # once only: a second cancellation would cut short the clearing up after the first
            with suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(_CLOSE_SECONDS)

    def _fail(self, reason: str) -> EnvironmentFailure:
        self._broken = reason
        self.close()
        return EnvironmentFailure(reason)

    def _wait(self, call: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(call, self._timeout), self._loop)
        # The second limit only matters if the loop itself has died.
        return future.result(self._timeout + 5.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serving)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            if not self._started.done():
                self._started.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        with open(os.devnull, "w") as silence:
            async with Client(stdio_client(self._parameters, errlog=silence), cache=None) as self._client:
                self._started.set_result(await self._list_tools())
                await asyncio.Event().wait()  # until cancelled

    async def _list_tools(self) -> list[Tool]:
        tools: list[Tool] = []
        cursor: str | None = None
        while True:
            page = await self._client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if cursor is None:
                return tools
