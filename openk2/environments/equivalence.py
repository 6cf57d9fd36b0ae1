"""When two calls of a tool ask for the same thing.

Numbers and dates are equal by value; an expression is its value and the numbers it
computes with; a unit is its canonical name; a query is its rows on the task's
table, and on copies that are shorter and whose columns are shifted against each
other, so that a query that is right by chance (or a constant) is found out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openk2.environments.arithmetic import evaluate, exact, operands
from openk2.environments.dates import parse_date
from openk2.environments.table import Row, Table
from openk2.environments.units import canonical_unit
from openk2.protocols import ToolError

SHIFTED_COPIES = 2
_DATES = {("date_shift", "date"), ("weekday", "date"), ("days_between", "start"), ("days_between", "end")}


def same_call(name: str, expected: Mapping[str, Any], actual: Mapping[str, Any], setup: Mapping[str, Any]) -> bool:
    """Whether `actual` arguments of tool `name` are as good as the `expected` ones; `setup` is the task's."""
    if set(expected) != set(actual):
        return False
    return all(_same(name, key, expected[key], actual[key], setup) for key in expected)


def _same(name: str, key: str, expected: Any, actual: Any, setup: Mapping[str, Any]) -> bool:
    if isinstance(expected, str) and isinstance(actual, str):
        try:
            if (name, key) == ("calculator", "expression"):
                return evaluate(expected) == evaluate(actual) and operands(expected) == operands(actual)
            if name == "convert_units" and key in ("from_unit", "to_unit"):
                return canonical_unit(expected) == canonical_unit(actual)
            if (name, key) in _DATES:
                return parse_date(expected) == parse_date(actual)
            if (name, key) == ("sql_query", "query") and "table" in setup:
                return _same_query(expected, actual, setup["table"])
        except ToolError:
            return expected == actual
        return " ".join(expected.split()) == " ".join(actual.split())
    return bool(_value(expected) == _value(actual))


def _value(value: Any) -> Any:
    """JSON values made comparable: 5 and 5.0 alike, true and 1 not."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return (type(value).__name__, value)
    if isinstance(value, Mapping):
        return {key: _value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    return exact(value) if abs(value) < float("inf") else repr(value)


def _same_query(expected: str, actual: str, description: Mapping[str, Any]) -> bool:
    ordered = "order by" in " ".join(expected.casefold().split())
    for shift in range(SHIFTED_COPIES + 1):
        table = Table(description["name"], description["columns"], _shifted(description["rows"], shift))
        try:
            wanted, found = table.rows(expected), table.rows(actual)
            if not _same_rows(wanted, found, ordered):
                return False
        finally:
            table.close()
    return True


def _shifted(rows: Sequence[Sequence[Any]], shift: int) -> list[list[Any]]:
    """Column j moved down by j * shift rows, then the last `shift` rows dropped: other neighbours, other counts."""
    columns = zip(*rows, strict=True)
    moved = [_rotate(list(column), j * shift) for j, column in enumerate(columns)]
    return [list(row) for row in zip(*moved, strict=True)][: max(len(rows) - shift, 0)]


def _rotate(values: list[Any], by: int) -> list[Any]:
    start = by % len(values)
    return values[len(values) - start :] + values[: len(values) - start]


def _same_rows(wanted: list[Row], found: list[Row], ordered: bool) -> bool:
    return wanted == found if ordered else sorted(wanted, key=repr) == sorted(found, key=repr)
