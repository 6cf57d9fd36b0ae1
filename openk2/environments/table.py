"""One read-only SQLite table in memory, described by the task.

Invariants: a query can only read that table; it may call only the functions on
the allow-list (none of which reads the clock or random bits); work, row count
and answer length are bounded by counts, never by time, so that the same query
has the same answer on every machine.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from openk2.protocols import ToolError

MAX_ROWS = 20
MAX_ANSWER_CHARACTERS = 400
MAX_QUERY_CHARACTERS = 400
MAX_STEPS = 200_000  # virtual machine instructions
_STEPS_PER_CHECK = 1_000
_MAX_VALUE_BYTES = 10_000

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,40}")
_NUMERIC_FUNCTIONS = ("abs", "avg", "count", "max", "min", "round", "sum", "total")
_TEXT_FUNCTIONS = ("group_concat", "instr", "length", "like", "lower", "ltrim", "replace", "rtrim", "substr", "trim")
_FUNCTIONS = frozenset((*_NUMERIC_FUNCTIONS, *_TEXT_FUNCTIONS, "coalesce", "ifnull", "nullif", "upper"))

Row = tuple[Any, ...]


class Table:
    """A table opened for queries; `close` frees it."""

    def __init__(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Raises `ValueError` if the description is not a table."""
        _check(name, columns, rows)
        self.name = name
        # Callers use an environment from one thread at a time, but not always the one that opened it.
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        listed = ", ".join(f'"{column}"' for column in columns)
        self._connection.execute(f'CREATE TABLE "{name}" ({listed})')
        marks = ", ".join("?" for _ in columns)
        self._connection.executemany(f'INSERT INTO "{name}" VALUES ({marks})', rows)
        self._connection.execute("PRAGMA query_only = ON")
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 4 * MAX_QUERY_CHARACTERS)
        self._connection.set_authorizer(self._authorize)
        self._connection.set_progress_handler(self._count, _STEPS_PER_CHECK)
        self._steps = 0

    @classmethod
    def from_setup(cls, description: Mapping[str, Any]) -> Table:
        """From `{"name": ..., "columns": [...], "rows": [[...], ...]}`."""
        missing = {"name", "columns", "rows"} - set(description)
        if missing:
            raise ValueError(f"setup.table: saw no {sorted(missing)[0]!r}, expected name, columns and rows")
        return cls(description["name"], description["columns"], description["rows"])

    def rows(self, query: str) -> list[Row]:
        """At most `MAX_ROWS` rows. Raises `ToolError` with SQLite's own words."""
        if len(query) > MAX_QUERY_CHARACTERS:
            raise ToolError(f"query is longer than {MAX_QUERY_CHARACTERS} characters")
        self._steps = 0
        try:
            found = self._connection.execute(query).fetchmany(MAX_ROWS + 1)
        except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
            raise ToolError(self._refusal(error)) from None
        if len(found) > MAX_ROWS:
            raise ToolError(f"more than {MAX_ROWS} rows; ask for fewer")
        return [tuple(_plain(value) for value in row) for row in found]

    def query(self, query: str) -> str:
        """The rows as compact JSON, for example `[["Ada",36]]`."""
        answer = json.dumps(self.rows(query), ensure_ascii=False, separators=(",", ":"))
        if len(answer) > MAX_ANSWER_CHARACTERS:
            raise ToolError("the answer is too long; ask for fewer columns or rows")
        return answer

    def close(self) -> None:
        self._connection.close()

    def _refusal(self, error: Exception) -> str:
        if self._steps > MAX_STEPS:
            return "the query takes too many steps"
        return "only SELECT on the table is allowed" if "prohibit" in str(error) else str(error)

    def _count(self) -> int:
        self._steps += _STEPS_PER_CHECK
        return int(self._steps > MAX_STEPS)

    def _authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
    ) -> int:
        if action == sqlite3.SQLITE_SELECT:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ and first == self.name:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY


def _check(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    for identifier in (name, *columns):
        if not isinstance(identifier, str) or not _NAME.fullmatch(identifier):
            raise ValueError(f"setup.table: saw the name {identifier!r}, expected letters, digits and underscores")
    if not columns:
        raise ValueError("setup.table.columns: saw none, expected at least one")
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"setup.table.rows: saw a row of {len(row)} values, expected {len(columns)}")
        for value in row:
            if value is not None and not isinstance(value, str | int | float):
                raise ValueError(f"setup.table.rows: saw {value!r}, expected text, a number or null")


def _plain(value: Any) -> Any:
    """Floats short: 4 decimals, and no point on a whole number; blobs as text."""
    if isinstance(value, float) and math.isfinite(value):
        rounded = round(value, 4)
        return int(rounded) if rounded.is_integer() else rounded
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
