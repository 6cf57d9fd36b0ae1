"""The built-in tools: their declarations and what they do.

Declarations are short on purpose: a small model reads all of them in every
dialogue. Arguments are checked against the declared JSON schema before a tool
runs; what a tool refuses is a `ToolError` of one short line, which the model
sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from json import dumps, loads
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry

from openk2.environments.arithmetic import evaluate, format_number
from openk2.environments.dates import date_shift, days_between, weekday
from openk2.environments.table import Table
from openk2.environments.units import convert_units
from openk2.protocols import ToolError, ToolSpec

ERROR_PREFIX = "error: "  # of a tool turn that reports a refusal
MAX_ERROR_CHARACTERS = 120
MAX_NOTES = 32
MAX_NOTE_CHARACTERS = 200


@dataclass
class State:
    """What the tools of one dialogue act on."""

    notes: dict[str, str] = field(default_factory=dict)
    table: Table | None = None

    @classmethod
    def from_setup(cls, setup: Mapping[str, Any]) -> State:
        """From `Task.setup`: `table` (see `Table.from_setup`) and `notes` (key to text), each optional."""
        unknown = set(setup) - {"table", "notes"}
        if unknown:
            raise ValueError(f"setup: saw {sorted(unknown)[0]!r}, expected only 'table' and 'notes'")
        table = Table.from_setup(setup["table"]) if "table" in setup else None
        return cls(notes=dict(setup.get("notes", {})), table=table)

    def close(self) -> None:
        if self.table is not None:
            self.table.close()


def tool_spec(name: str, description: str, required: Mapping[str, str], **optional: str) -> ToolSpec:
    """An OpenAI-format declaration whose arguments are given as name to JSON type."""
    properties = {argument: {"type": kind} for argument, kind in {**required, **optional}.items()}
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def parse_arguments(text: str) -> dict[str, Any]:
    """A call's arguments as the model wrote them: one JSON object. Raises `ToolError` for anything else."""
    try:
        arguments = loads(text)
        # Python reads more than JSON has: NaN, 1e999, half a surrogate pair. None of it may reach a tool.
        dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ToolError("arguments are not JSON") from None
    if not isinstance(arguments, dict):
        raise ToolError("arguments are not a JSON object")
    return arguments


def check_arguments(spec: ToolSpec, arguments: Mapping[str, Any]) -> None:
    """Raise `ToolError` unless the arguments fit the declared schema and name no other argument."""
    schema = spec["function"]["parameters"]
    for error in _validator(dumps(schema, sort_keys=True)).iter_errors(dict(arguments)):
        where = ".".join(str(part) for part in error.absolute_path)
        raise ToolError(short_line(f"{where}: {error.message}" if where else error.message))
    declared = schema.get("properties", {})
    for name in arguments:
        if name not in declared:
            raise ToolError(short_line(f"unknown argument {name!r}"))


def short_line(text: str) -> str:
    """One line of bounded length, as the model is shown it."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_ERROR_CHARACTERS else line[: MAX_ERROR_CHARACTERS - 3] + "..."


@lru_cache(maxsize=256)
def _validator(schema: str) -> Draft202012Validator:
    # An empty registry: a `$ref` in a server's schema can never make us fetch anything.
    return Draft202012Validator(loads(schema), registry=Registry())


def _set_note(state: State, key: str, text: str) -> str:
    if len(key) + len(text) > MAX_NOTE_CHARACTERS:
        raise ToolError(f"a note holds at most {MAX_NOTE_CHARACTERS} characters")
    if key not in state.notes and len(state.notes) >= MAX_NOTES:
        raise ToolError(f"at most {MAX_NOTES} notes")
    state.notes[key] = text
    return "saved"


def _get_note(state: State, key: str) -> str:
    if key not in state.notes:
        raise ToolError(f"no note {key!r}")
    return state.notes[key]


def _sql_query(state: State, query: str) -> str:
    if state.table is None:
        raise ToolError("there is no table")
    return state.table.query(query)


@dataclass(frozen=True)
class Tool:
    """A declaration and the function behind it, called with the state and the declared arguments."""

    spec: ToolSpec
    run: Callable[..., str]


_TOOLS = (
    Tool(
        tool_spec("calculator", "Compute with + - * / ( )", {"expression": "string"}),
        lambda state, expression: format_number(evaluate(expression), 4),
    ),
    Tool(
        # The direction has a name of its own: a sign before a copied number is what a small model forgets.
        tool_spec(
            "date_shift", "Date days after or before", {"direction": "string", "date": "string", "days": "integer"}
        ),
        lambda state, direction, date, days: date_shift(direction, date, int(days)),
    ),
    Tool(
        tool_spec("days_between", "Days from start to end", {"start": "string", "end": "string"}),
        lambda state, start, end: days_between(start, end),
    ),
    Tool(
        tool_spec("weekday", "Day of the week", {"date": "string"}),
        lambda state, date: weekday(date),
    ),
    Tool(
        tool_spec("convert_units", "Convert units", {"value": "number", "from_unit": "string", "to_unit": "string"}),
        lambda state, value, from_unit, to_unit: convert_units(value, from_unit, to_unit),
    ),
    Tool(tool_spec("set_note", "Save a note", {"key": "string", "text": "string"}), _set_note),
    Tool(tool_spec("get_note", "Read a note", {"key": "string"}), _get_note),
    Tool(tool_spec("sql_query", "Query the table with SQL", {"query": "string"}), _sql_query),
)
BUILTIN_TOOLS: dict[str, Tool] = {tool.spec["function"]["name"]: tool for tool in _TOOLS}
