"""An MCP server that misbehaves on request, and that outlives its stdin unless it is killed."""

import os
import sys
import time

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("stubborn")


@server.tool()
def echo(text: str) -> str:
    """Say it again"""
    return text


@server.tool()
def process_id() -> str:
    """This process"""
    return str(os.getpid())


@server.tool()
def refuse() -> str:
    """Fail as a tool may"""
    raise ToolError("I would rather not")


@server.tool()
def hang() -> str:
    """Never answer"""
    time.sleep(1000)
    return "late"


@server.tool()
def die() -> str:
    """End the process"""
    os._exit(3)


server.run()
if "outlive" in sys.argv:
    time.sleep(1000)
