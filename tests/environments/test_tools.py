"""The built-in tools: right answers, refused arguments, bounded work."""

from __future__ import annotations

from datetime import date, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tool_dialogues import PEOPLE

from openk2.environments import TOOL_NAMES, declarations, open_environment
from openk2.environments.arithmetic import evaluate, format_number
from openk2.environments.tools import MAX_ERROR_CHARACTERS, parse_arguments
from openk2.environments.units import UNITS, convert_units
from openk2.protocols import Environment, Task, ToolError


@pytest.fixture
def tools() -> Environment:
    return open_environment(Task("t", "any", "", TOOL_NAMES, (), PEOPLE))


ANSWERS: list[tuple[str, dict[str, Any], str]] = [
    ("calculator", {"expression": "37*48"}, "1776"),
    ("calculator", {"expression": " (2 + 3) * -4 "}, "-20"),
    ("calculator", {"expression": "7/3"}, "2.3333"),
    ("calculator", {"expression": "-1/8"}, "-0.125"),
    ("calculator", {"expression": "0.1+0.2"}, "0.3"),
    ("calculator", {"expression": "12345678901234567.5*2"}, "24691357802469135"),
    ("calculator", {"expression": "99999999999*99999999999"}, "9999999999800000000001"),
    ("calculator", {"expression": "1/30000"}, "0"),
    ("date_shift", {"direction": "after", "date": "2024-02-28", "days": 2}, "2024-03-01"),
    ("date_shift", {"direction": "before", "date": "2024-01-01", "days": 1}, "2023-12-31"),
    ("date_shift", {"direction": "before", "date": "1 January 2024", "days": 1}, "2023-12-31"),
    ("date_shift", {"direction": "before", "date": "january 01, 2024", "days": 1}, "2023-12-31"),
    ("convert_units", {"value": 1, "from_unit": "KM", "to_unit": "metres"}, "1000"),
    ("convert_units", {"value": 100, "from_unit": "degrees C", "to_unit": "F"}, "212"),
    ("date_shift", {"direction": "after", "date": "2024-01-01", "days": 1.0}, "2024-01-02"),
    ("days_between", {"start": "2024-01-01", "end": "2024-12-31"}, "365"),
    ("days_between", {"start": "2024-12-31", "end": "2024-01-01"}, "-365"),
    ("weekday", {"date": "2000-01-01"}, "Saturday"),
    ("convert_units", {"value": 26.2, "from_unit": "miles", "to_unit": "kilometers"}, "42.16"),
    ("convert_units", {"value": 98.6, "from_unit": "fahrenheit", "to_unit": "celsius"}, "37"),
    ("convert_units", {"value": -40, "from_unit": "celsius", "to_unit": "fahrenheit"}, "-40"),
    ("convert_units", {"value": 1, "from_unit": "foot", "to_unit": "inches"}, "12"),
    ("convert_units", {"value": 36, "from_unit": "kilometers per hour", "to_unit": "meters per second"}, "10"),
    ("convert_units", {"value": 3, "from_unit": "gallons", "to_unit": "liters"}, "11.36"),
    ("sql_query", {"query": "SELECT name, age FROM people WHERE age > 40"}, '[["Bob",51],["Dan",44]]'),
    ("sql_query", {"query": "select avg(age) from people"}, "[[39.75]]"),
    ("sql_query", {"query": "WITH q AS (SELECT age FROM people) SELECT max(age) FROM q"}, "[[51]]"),
    ("git_show", {"repo_path": "shop", "revision": "main:PORT"}, "8000"),
]


@pytest.mark.parametrize(("name", "arguments", "answer"), ANSWERS)
def test_answers(tools: Environment, name: str, arguments: dict[str, Any], answer: str) -> None:
    assert tools.call(name, arguments) == answer


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("calculator", {"expression": "2**100000"}, "may hold only"),
    ("calculator", {"expression": "7//2"}, "may hold only"),
    ("calculator", {"expression": "__import__('os')"}, "may hold only"),
    ("calculator", {"expression": "1,2"}, "may hold only"),
    ("calculator", {"expression": "1(2)"}, "may hold only"),
    ("calculator", {"expression": "(1+"}, "well formed"),
    ("calculator", {"expression": ""}, "may hold only"),
    ("calculator", {"expression": "1/(2-2)"}, "division by zero"),
    ("calculator", {"expression": "9" * 150}, "too large"),
    ("calculator", {"expression": "-" * 300 + "1"}, "longer than"),
    ("calculator", {"expression": 5}, "not of type 'string'"),
    ("date_shift", {"direction": "since", "date": "2024-02-28", "days": 1}, "expected after or before"),
    ("date_shift", {"direction": "after", "date": "2024-02-30", "days": 1}, "no such date"),
    ("date_shift", {"direction": "after", "date": "1 Januar 2024", "days": 1}, "YYYY-MM-DD"),
    ("date_shift", {"direction": "after", "date": "30 February 2024", "days": 1}, "no such date"),
    ("date_shift", {"direction": "after", "date": "2024-March-01", "days": 1}, "YYYY-MM-DD"),
    ("date_shift", {"direction": "after", "date": "20240101", "days": 1}, "YYYY-MM-DD"),
    ("date_shift", {"direction": "after", "date": "2024-01-01", "days": 10**12}, "out of range"),
    ("date_shift", {"direction": "after", "date": "2024-01-01", "days": 1e300}, "out of range"),
    ("date_shift", {"direction": "after", "date": "2024-01-01", "days": "1"}, "not of type 'integer'"),
    ("date_shift", {"direction": "after", "date": "2024-01-01", "days": True}, "not of type 'integer'"),
    ("date_shift", {"direction": "after", "date": "2024-01-01"}, "'days' is a required property"),
    ("weekday", {"date": "2024-01-01", "zone": "UTC"}, "unknown argument 'zone'"),
    ("convert_units", {"value": 1, "from_unit": "miles", "to_unit": "pounds"}, "cannot convert miles to pounds"),
    ("convert_units", {"value": 1, "from_unit": "celsius", "to_unit": "pounds"}, "cannot convert"),
    ("convert_units", {"value": 1, "from_unit": "smoots", "to_unit": "feet"}, "unknown unit"),
    ("convert_units", {"value": float("inf"), "from_unit": "feet", "to_unit": "feet"}, "too large"),
    ("convert_units", {"value": float("nan"), "from_unit": "feet", "to_unit": "feet"}, "too large"),
    ("get_note", {"key": "nothing"}, "no note 'nothing'"),
    ("set_note", {"key": "k", "text": "x" * 500}, "at most"),
    ("git_show", {"repo_path": "/etc", "revision": "main:PORT"}, "no such git_show call"),
    ("git_show", {"repo_path": "shop", "revision": "main:MISSING"}, "not found"),
    ("no_such_tool", {}, "unknown tool 'no_such_tool'"),
    ("x" * 900, {}, "unknown tool"),
]


@pytest.mark.parametrize(("name", "arguments", "reason"), REFUSED)
def test_refusals_are_one_short_line(tools: Environment, name: str, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ToolError) as refusal:
        tools.call(name, arguments)
    text = str(refusal.value)
    assert reason in text
    assert "\n" not in text and len(text) <= MAX_ERROR_CHARACTERS


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM people",
        "INSERT INTO people VALUES ('x', 1, 'y')",
        "DROP TABLE people",
        "CREATE TABLE other (x)",
        "ATTACH 'other.db' AS other",
        "VACUUM INTO 'copy.db'",
        "PRAGMA query_only = OFF",
        "SELECT * FROM sqlite_master",
        "SELECT load_extension('x')",
        "SELECT random()",
        "SELECT CURRENT_TIMESTAMP",
        "SELECT date('now')",
        "SELECT zeroblob(1000000000)",
        "SELECT 1; SELECT 2",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
        "SELECT replace(replace(group_concat(name), 'a', 'aaaaaaaaaaaaaaaa'), 'a', 'bbbbbbbbbbbbbb') FROM people",
        "SELECT count(*) FROM " + ", ".join(f"people p{i}" for i in range(14)),
        "SELECT a.name FROM people a, people b, people c",
        "SELECT 1 " + " " * 500,
        "SELECT '\0'",
        "SELECT '\ud800'",
    ],
)
def test_sql_is_read_only_and_bounded(tools: Environment, query: str) -> None:
    with pytest.raises(ToolError):
        tools.call("sql_query", {"query": query})
    assert tools.call("sql_query", {"query": "SELECT count(*) FROM people"}) == "[[4]]"


def test_notes_live_for_one_dialogue() -> None:
    task = Task("t", "set_note", "", ("set_note", "get_note"), (), {"notes": {"old": "here"}})
    first, second = open_environment(task), open_environment(task)
    assert first.call("set_note", {"key": "k", "text": "v"}) == "saved"
    assert first.call("get_note", {"key": "k"}) == "v"
    assert second.call("get_note", {"key": "old"}) == "here"
    with pytest.raises(ToolError, match="no note 'k'"):
        second.call("get_note", {"key": "k"})
    assert "k" not in task.setup["notes"]
    for number in range(31):
        second.call("set_note", {"key": str(number), "text": ""})
    with pytest.raises(ToolError, match="at most 32 notes"):
        second.call("set_note", {"key": "one more", "text": ""})


def test_only_the_named_tools_are_offered() -> None:
    environment = open_environment(Task("t", "weekday", "", ("weekday",), ()))
    assert environment.declarations() == declarations(["weekday"])
    with pytest.raises(ToolError, match="unknown tool"):
        environment.call("calculator", {"expression": "1"})


def test_declarations_are_short_and_minimal() -> None:
    for spec in declarations(TOOL_NAMES):
        function = spec["function"]
        assert len(function["description"]) <= 30
        assert set(function["parameters"]) == {"type", "properties", "required"}
        assert set(function["parameters"]["required"]) <= set(function["parameters"]["properties"])
        assert all(set(schema) == {"type"} for schema in function["parameters"]["properties"].values())
    with pytest.raises(ValueError, match="'abacus'.*calculator"):
        declarations(["abacus"])


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        ({"tabel": {}}, "'tabel'"),
        ({"table": {"name": "t", "columns": ["a"]}}, "'rows'"),
        ({"table": {"name": "t; DROP", "columns": ["a"], "rows": []}}, "letters, digits"),
        ({"table": {"name": "t", "columns": [], "rows": []}}, "at least one"),
        ({"table": {"name": "t", "columns": ["a"], "rows": [[1, 2]]}}, "a row of 2"),
        ({"table": {"name": "t", "columns": ["a"], "rows": [[[1]]]}}, "text, a number or null"),
    ],
)
def test_malformed_setup(setup: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_environment(Task("t", "sql_query", "", ("sql_query",), (), setup))


@pytest.mark.parametrize(
    "text", ["", "[1]", "5", "{", '{"x": NaN}', '{"x": 1e999}', '{"x": "\\ud800"}', "[" * 100_000, '{"x": 1} y', "null"]
)
def test_arguments_must_be_one_json_object(text: str) -> None:
    with pytest.raises(ToolError):
        parse_arguments(text)


_NUMBERS = st.decimals(0, 9999, places=2).map(str) | st.integers(0, 10**6).map(str)


@given(
    st.recursive(
        _NUMBERS,
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"({''.join(parts)})"),
        max_leaves=8,
    )
)
def test_calculator_agrees_with_exact_arithmetic(expression: str) -> None:
    """Against Python's own arithmetic on `Fraction`s written into the expression (here only; the text is ours)."""
    import re

    wrapped = re.sub(r"[0-9.]+", lambda match: f"Fraction('{match[0]}')", expression)
    try:
        expected = eval(wrapped, {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ToolError, match="division by zero"):
            evaluate(expression)
        return
    try:
        assert evaluate(expression) == expected
    except ToolError as refusal:
        assert "too large" in str(refusal) or "longer" in str(refusal)


@given(st.text(alphabet="0123456789+-*/(). ", max_size=60))
def test_calculator_never_crashes(expression: str) -> None:
    try:
        text = format_number(evaluate(expression), 4)
    except ToolError:
        return
    assert abs(Fraction(text) - evaluate(expression)) <= Fraction(1, 20_000)


@given(st.dates(date(1900, 1, 1), date(2100, 1, 1)), st.integers(-5000, 5000))
def test_dates_agree(start: date, days: int) -> None:
    tools = open_environment(Task("t", "date_shift", "", ("date_shift", "days_between"), ()))
    end = tools.call("date_shift", {"direction": "after", "date": start.isoformat(), "days": days})
    assert end == (start + timedelta(days)).isoformat()
    assert tools.call("days_between", {"start": start.isoformat(), "end": end}) == str(days)
    assert tools.call("date_shift", {"direction": "before", "date": end, "days": days}) == start.isoformat()


@pytest.mark.parametrize("unit", UNITS)
def test_each_unit_converts_to_itself(unit: str) -> None:
    assert convert_units(12.5, unit.upper(), unit) == "12.5"
