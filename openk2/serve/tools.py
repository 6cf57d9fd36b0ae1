"""Tools that the server runs for its clients: built-in ones, and those of MCP servers.

Invariants: only what the operator named is run; a call's arguments fit the
declared schema before it runs; a call is answered within the time limit, off
the event loop, and its result is of bounded length. What built-in tools keep
(notes) belongs to the dialogue that the client names. Left out: a loop of
answers and calls on the server (whoever asks for the answers makes the calls).
"""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import jsonschema
from pydantic import Field
from referencing.exceptions import Unresolvable

from openk2.environments import TOOL_NAMES, declarations, open_environment
from openk2.environments.mcp import McpServer
from openk2.environments.tools import check_arguments, parse_arguments, short_line
from openk2.protocols import Environment, EnvironmentFailure, Task, ToolError, ToolSpec
from openk2.serve.errors import ApiError, shown
from openk2.serve.schema import ToolName, Wire

BUILTIN = "builtin"  # the origin of built-in tools
MAX_RESULT_CHARACTERS = 20_000
MAX_CALLS = 8  # at a time; others wait
MAX_DIALOGUES = 512  # whose notes are kept
_NEEDS_TABLE = "sql_query"
_LAUNCHERS = ("npx", "uvx", "bunx", "pipx", "docker", "podman", "node")


class CallRequest(Wire):
    """A call as a model made it: `arguments` is its text, or the object. Calls that name the same `dialogue` share what
    the tools keep; without one a call is alone."""

    name: ToolName
    arguments: str | dict[str, Any]
    dialogue: Annotated[str, Field(max_length=64)] = ""


class Source(Protocol):
    """Where tools come from. Methods are called on any thread."""

    origin: str

    def declarations(self) -> list[ToolSpec]: ...

    def call(self, request: CallRequest, arguments: dict[str, Any]) -> str:
        """Raises `ToolError` where the tool refuses, `EnvironmentFailure` where it broke."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Offer:
    spec: ToolSpec
    source: Source

    def told(self) -> dict[str, Any]:
        return {**self.spec, "origin": self.source.origin}


class Toolbox:
    """The tools on offer. `timeout` bounds a call, in seconds."""

    def __init__(self, entries: Sequence[str], *, timeout: float) -> None:
        """`entries`: names of built-in tools, command lines of MCP servers. Raises `ValueError` for what cannot be
        offered; servers that were started are then closed again."""
        self.timeout = timeout
        self._places = asyncio.Semaphore(MAX_CALLS)
        self._sources: list[Source] = []
        self._offers: dict[str, Offer] = {}
        try:
            names = [entry for entry in entries if entry in TOOL_NAMES]
            if names:
                self._add(BuiltinTools(names))
            for entry in entries:
                if entry not in TOOL_NAMES:
                    # Longer than the client waits: who is told of the limit is then always the client.
                    self._add(ServerTools(_command(entry), timeout=timeout + 1.0))
        except BaseException:
            self.close()
            raise

    def listed(self) -> list[dict[str, Any]]:
        """The declarations, each with its `origin`."""
        return [offer.told() for offer in self._offers.values()]

    async def call(self, request: CallRequest) -> str:
        """The tool's result. Raises `ApiError`."""
        offer = self._offers.get(request.name)
        if offer is None:
            known = ", ".join(self._offers) or "none was named at the start, see --tools"
            message = f"name: saw {shown(request.name)}, expected a tool that this server runs ({known})"
            raise ApiError(404, message, param="name", code="tool_not_found")
        try:
            async with asyncio.timeout(self.timeout), self._places:
                return await _in_thread(partial(_run, offer, request))
        except TimeoutError:
            raise ApiError(
                504, f"{request.name}: took longer than {self.timeout:g} seconds; ask for less", code="timeout"
            ) from None

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def _add(self, source: Source) -> None:
        self._sources.append(source)
        for spec in source.declarations():
            name = spec["function"]["name"]
            if name in self._offers:
                raise ValueError(f"serve: saw two tools of the name {name!r}, expected one; leave one of them out")
            try:
                jsonschema.Draft202012Validator.check_schema(spec["function"]["parameters"])
            except jsonschema.SchemaError as error:
                reason = short_line(error.message)
                raise ValueError(f"serve: saw parameters of {name!r} that are no JSON schema ({reason})") from None
            self._offers[name] = Offer(spec, source)


class BuiltinTools:
    """Those of `openk2.environments`, with a state for each of the latest dialogues."""

    origin = BUILTIN

    def __init__(self, names: Sequence[str]) -> None:
        if _NEEDS_TABLE in names:
            raise ValueError(f"serve: saw the tool {_NEEDS_TABLE}, which has no table here; leave it out")
        self._names = tuple(names)
        self._states: OrderedDict[str, Environment] = OrderedDict()
        self._one_at_a_time = threading.Lock()  # none of them takes long, and a state is for one thread

    def declarations(self) -> list[ToolSpec]:
        return declarations(self._names)

    def call(self, request: CallRequest, arguments: dict[str, Any]) -> str:
        with self._one_at_a_time:
            return self._state(request.dialogue).call(request.name, arguments)

    def close(self) -> None:
        self._states.clear()

    def _state(self, dialogue: str) -> Environment:
        task = Task(id="serve", domain="serve", system="", tools=self._names, turns=())
        if not dialogue:
            return open_environment(task)
        if dialogue not in self._states:
            self._states[dialogue] = open_environment(task)
        self._states.move_to_end(dialogue)
        if len(self._states) > MAX_DIALOGUES:
            self._states.popitem(last=False)
        return self._states[dialogue]


class ServerTools:
    """Those of an MCP server, which is started anew for the call after the one that it broke at."""

    def __init__(self, command: Sequence[str], *, timeout: float) -> None:
        self.origin = _server_name(command)
        self._open = partial(McpServer, command, timeout=timeout)
        self._starting = threading.Lock()
        try:
            self._server: McpServer | None = self._open()
        except EnvironmentFailure as error:
            raise ValueError(f"serve: {error}; run its command line by itself to see why") from None
        self._specs = self._server.declarations()

    def declarations(self) -> list[ToolSpec]:
        return self._specs

    def call(self, request: CallRequest, arguments: dict[str, Any]) -> str:
        with self._starting:
            server = self._server = self._server or self._open()
        try:
            return server.call(request.name, arguments)
        except EnvironmentFailure:
            with self._starting:
                if self._server is server:
                    self._server = None
            raise

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


def _run(offer: Offer, request: CallRequest) -> str:
    name = request.name
    try:
        arguments = parse_arguments(_text(request.arguments))
        check_arguments(offer.spec, arguments)
        result = offer.source.call(request, arguments)
    except ToolError as error:  # for the model to read
        raise ApiError(400, str(error), param="arguments", code="tool_refused") from None
    except EnvironmentFailure as error:
        raise ApiError(503, f"{name}: {error}", code="tool_failed") from None
    except (Unresolvable, RecursionError) as error:
        reason = f"the declaration cannot be checked against ({type(error).__name__})"
        raise ApiError(503, f"{name}: {reason}; the tool's author has to correct it", code="tool_failed") from None
    if len(result) > MAX_RESULT_CHARACTERS:
        return f"{result[:MAX_RESULT_CHARACTERS]}\n(cut here: {len(result)} characters)"
    return result


def _text(arguments: str | dict[str, Any]) -> str:
    """So that both forms pass the same checks."""
    try:
        return arguments if isinstance(arguments, str) else json.dumps(arguments)
    except RecursionError:
        raise ToolError("arguments are nested too deeply") from None


async def _in_thread(work: Callable[[], str]) -> str:
    """`work` on a thread of its own: one that hangs takes no place in a pool and does not keep the process alive."""
    done: Future[str] = Future()

    def run() -> None:
        done.set_running_or_notify_cancel()
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="tool", daemon=True).start()
    return await asyncio.wrap_future(done)


def _command(entry: str) -> list[str]:
    try:
        command = shlex.split(entry)
    except ValueError as error:
        raise ValueError(f"serve: saw the tool {entry!r}, expected a command line ({error}); correct it") from None
    if not command or shutil.which(command[0]) is None:
        known = ", ".join(name for name in TOOL_NAMES if name != _NEEDS_TABLE)
        raise ValueError(
            f"serve: saw the tool {entry!r}, expected one of {known}, or the command line of an MCP server"
        )
    return command


def _server_name(command: Sequence[str]) -> str:
    """A short name for people; the whole line may hold folders and keys that are none of a client's business."""
    program = Path(command[0]).name
    if "-m" in command[1:-1]:
        return command[command.index("-m", 1) + 1]
    if program.startswith("python") or program in _LAUNCHERS:
        words = (word for word in command[1:] if not word.startswith("-") and word not in ("run", "exec"))
        return Path(next(words, program)).name
    return program
