"""Tool servers replayed from a file: (tool, arguments) -> answer.

A recording is JSONL, one call a line: `tool`, `arguments`, and either `answer`
or `error` (what a `ToolError` said). It is made from a live server by `record`
and stands in for servers whose answers depend on their arguments alone. A call
that was never recorded is refused like any other bad argument.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openk2.environments.tools import short_line
from openk2.protocols import Environment, ToolError, ToolSpec

Call = tuple[str, Mapping[str, Any]]


class RecordedServer:
    """An `Environment` that answers from a recording."""

    def __init__(self, specs: Sequence[ToolSpec], path: Path) -> None:
        """Raises `ValueError` naming the first line that is not a recorded call."""
        self._specs = list(specs)
        self._answers: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(line)
                self._answers[call_key(entry["tool"], entry["arguments"])] = entry
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{path.name} line {number}: saw {line[:40]!r}, expected an object with tool, arguments and answer"
                ) from None

    def declarations(self) -> list[ToolSpec]:
        return list(self._specs)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        entry = self._answers.get(call_key(name, arguments))
        if entry is None:
            raise ToolError(short_line(f"no such {name} call: {json.dumps(dict(arguments), ensure_ascii=False)}"))
        if "error" in entry:
            raise ToolError(entry["error"])
        return str(entry["answer"])

    def close(self) -> None:
        """Nothing is held open."""


def record(server: Environment, calls: Iterable[Call]) -> str:
    """Make the calls on a live server and return the recording's text, one line a call."""
    lines = []
    for name, arguments in calls:
        entry: dict[str, Any] = {"tool": name, "arguments": dict(arguments)}
        try:
            entry["answer"] = server.call(name, arguments)
        except ToolError as error:
            entry["error"] = str(error)
        lines.append(json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n")
    return "".join(lines)


def call_key(name: str, arguments: Mapping[str, Any]) -> str:
    """The same text for the same call, whatever the order of the arguments; 5.0 is 5."""
    plain = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in arguments.items()
    }
    return json.dumps([name, plain], sort_keys=True)
