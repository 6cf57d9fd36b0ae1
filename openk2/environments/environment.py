"""Opening the tools of one task.

`open_environment` offers exactly the tools that the task names, with the state
that its `setup` describes. The git tools answer from a recording of a real MCP
server by default, so neither git nor a server process is needed; a live server
is used when the caller hands one in (and closes it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from openk2.environments.git_fixture import GIT_SPECS, RECORDING
from openk2.environments.recording import RecordedServer
from openk2.environments.tools import BUILTIN_TOOLS, State, check_arguments, short_line
from openk2.protocols import Environment, Task, ToolError, ToolSpec

_SPECS: dict[str, ToolSpec] = {name: tool.spec for name, tool in BUILTIN_TOOLS.items()} | {
    spec["function"]["name"]: spec for spec in GIT_SPECS
}
TOOL_NAMES: tuple[str, ...] = tuple(_SPECS)


def declarations(names: Sequence[str]) -> list[ToolSpec]:
    """The declarations of these tools, in this order. Raises `ValueError` for an unknown name."""
    return [_spec(name) for name in names]


def open_environment(task: Task, *, servers: Sequence[Environment] = ()) -> Environment:
    """The task's tools with their starting state.

    A tool that one of `servers` declares is called there, whatever its name;
    the servers stay the caller's to close. Raises `ValueError` for a task that
    names an unknown tool or whose `setup` is malformed.
    """
    routes: dict[str, Environment] = {}
    specs: dict[str, ToolSpec] = {}
    for server in servers:
        for spec in server.declarations():
            routes[spec["function"]["name"]] = server
            specs[spec["function"]["name"]] = spec
    offered = {name: specs[name] if name in specs else _spec(name) for name in task.tools}
    for name in offered:
        if name not in routes and name not in BUILTIN_TOOLS:
            routes[name] = _recorded_git()
    return TaskEnvironment(offered, State.from_setup(task.setup), routes)


class TaskEnvironment:
    """An `Environment` over the built-in tools and any tool servers."""

    def __init__(self, specs: Mapping[str, ToolSpec], state: State, routes: Mapping[str, Environment]) -> None:
        self._specs = specs
        self._state = state
        self._routes = routes

    def declarations(self) -> list[ToolSpec]:
        return list(self._specs.values())

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Check the arguments and run the tool."""
        if name not in self._specs:
            raise ToolError(short_line(f"unknown tool {name!r}"))
        check_arguments(self._specs[name], arguments)
        if name in self._routes:
            return self._routes[name].call(name, arguments)
        try:
            return BUILTIN_TOOLS[name].run(self._state, **arguments)
        except ToolError as error:
            raise ToolError(short_line(str(error))) from None

    def close(self) -> None:
        self._state.close()


def _spec(name: str) -> ToolSpec:
    if name not in _SPECS:
        raise ValueError(f"tools: saw {name!r}, expected some of {', '.join(TOOL_NAMES)}")
    return _SPECS[name]


@cache
def _recorded_git() -> RecordedServer:
    return RecordedServer(GIT_SPECS, RECORDING)
