"""The kinds of request: what is asked for, which calls answer it, and where the answer stands in the results.

An `Ask` is a request before its words: `phrases` has the tables for its
`kind`, the slots are the values to say. Answers are read from what the tools
really returned, by `read`, which is written apart from the teacher's own
reading so that the judge can catch either. Left out: requests that need one
call's result inside the next call.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from openk2.environments.dates import MONTHS
from openk2.environments.git_fixture import fixture_files
from openk2.posttrain.synth import names
from openk2.posttrain.synth.phrasing import fill
from openk2.posttrain.synth.split import Draw
from openk2.protocols import ExpectedCall

Read = Callable[[Sequence[str]], str]


@dataclass
class World:
    """The state that a task's tools start from, and what is still free to be asked about in it."""

    table: dict[str, Any] | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def setup(self) -> dict[str, Any]:
        """As `Task.setup` holds it."""
        found: dict[str, Any] = {}
        if self.table is not None:
            found["table"] = self.table
        if self.notes:
            found["notes"] = dict(self.notes)
        return found


@dataclass(frozen=True)
class Ask:
    """One request: phrase tables to use, values to say, calls that answer it, how to read the answer."""

    kind: str
    slots: Mapping[str, str]
    calls: tuple[ExpectedCall, ...]
    read: Read


Maker = Callable[[Draw, World], Ask]


def first_result(results: Sequence[str]) -> str:
    return results[0]


def both_results(results: Sequence[str]) -> str:
    return " and ".join(results)


def first_cell(results: Sequence[str]) -> str:
    return str(json.loads(results[0])[0][0])


# --- arithmetic -------------------------------------------------------------------------------------------------

_SIZES = ((2, 20), (10, 99), (10, 99), (100, 999), (100, 999), (1000, 9999))


def _size(rng: random.Random) -> int:
    return rng.randint(*rng.choice(_SIZES))


def _calculator(kind: str, draw: Draw, numbers: Sequence[int], expression: str) -> Ask:
    letters = dict(zip("abcd", (_written(draw.rng, number) for number in numbers), strict=False))
    slots = {**letters, "thing": draw.rng.choice(names.THINGS), "name": draw.name(names.PERSONS)}
    call = ExpectedCall(
        "calculator", {"expression": fill(expression, dict(zip("abcd", map(str, numbers), strict=False)))}
    )
    return Ask(kind, slots, (call,), first_result)


def _written(rng: random.Random, number: int) -> str:
    return f"{number:,}" if number >= 1000 and rng.random() < 0.05 else str(number)


def add(draw: Draw, world: World) -> Ask:
    return _calculator("add", draw, draw.numbers(lambda rng: (_size(rng), _size(rng))), "{a} + {b}")


def sub(draw: Draw, world: World) -> Ask:
    def pair(rng: random.Random) -> tuple[int, ...]:
        low, high = sorted((_size(rng), _size(rng)))
        return (low, high) if rng.random() < 0.1 else (high, low)

    return _calculator("sub", draw, draw.numbers(pair), "{a} - {b}")


def mul(draw: Draw, world: World) -> Ask:
    return _calculator("mul", draw, draw.numbers(lambda rng: (_size(rng), rng.randint(2, 99))), "{a} * {b}")


def div(draw: Draw, world: World) -> Ask:
    def pair(rng: random.Random) -> tuple[int, ...]:
        divisor = rng.choice((rng.randint(2, 12), rng.randint(2, 60)))
        return divisor * rng.randint(2, 150), divisor

    return _calculator("div", draw, draw.numbers(pair), "{a} / {b}")


def two_sums(draw: Draw, world: World) -> Ask:
    first = draw.numbers(lambda rng: (rng.randint(2, 99), rng.randint(2, 99)))
    second = draw.numbers(lambda rng: (rng.randint(2, 99), rng.randint(2, 99)))
    numbers = [str(number) for number in (*first, *second)]
    expressions = (f"{numbers[0]} + {numbers[1]}", f"{numbers[2]} + {numbers[3]}")
    calls = tuple(ExpectedCall("calculator", {"expression": text}) for text in expressions)
    return Ask("two_sums", dict(zip("abcd", numbers, strict=True)), calls, both_results)


# --- dates ------------------------------------------------------------------------------------------------------


def _spoken(rng: random.Random, day: date) -> str:
    if rng.random() < 0.75:
        return day.isoformat()
    month, number, year = MONTHS[day.month - 1], day.day, day.year
    return rng.choice((f"{number} {month} {year}", f"{month} {number}, {year}", f"{month} {number} {year}"))


def _days(rng: random.Random) -> int:
    return rng.choice((rng.randint(2, 30), rng.randint(2, 100), rng.randint(100, 999)))


def after(draw: Draw, world: World) -> Ask:
    return _shifted("after", draw)


def before(draw: Draw, world: World) -> Ask:
    return _shifted("before", draw)


def _shifted(direction: str, draw: Draw) -> Ask:
    said, days = _spoken(draw.rng, draw.day()), _days(draw.rng)
    call = ExpectedCall("date_shift", {"direction": direction, "date": said, "days": days})
    return Ask(direction, {"date": said, "n": str(days)}, (call,), first_result)


def between(draw: Draw, world: World) -> Ask:
    first = draw.day()
    second = draw.day_after(first, draw.rng.choice((40, 200, 800)))
    start, end = _spoken(draw.rng, first), _spoken(draw.rng, second)
    call = ExpectedCall("days_between", {"start": start, "end": end})
    return Ask("between", {"date": start, "date2": end}, (call,), first_result)


def weekday(draw: Draw, world: World) -> Ask:
    said = _spoken(draw.rng, draw.day())
    return Ask("weekday", {"date": said}, (ExpectedCall("weekday", {"date": said}),), first_result)


def two_weekdays(draw: Draw, world: World) -> Ask:
    days = (draw.day(), draw.day())
    calls = tuple(ExpectedCall("weekday", {"date": day.isoformat()}) for day in days)
    return Ask("two_weekdays", {"date": days[0].isoformat(), "date2": days[1].isoformat()}, calls, both_results)


# --- units ------------------------------------------------------------------------------------------------------


def convert(draw: Draw, world: World) -> Ask:
    rng = draw.rng
    source, target = rng.sample(rng.choice(names.UNIT_GROUPS), 2)
    (value,) = draw.numbers(
        lambda rng: (rng.choice((rng.randint(2, 99), rng.randint(2, 999), rng.randint(11, 990) / 10)),)
    )
    value = int(value) if float(value).is_integer() else value
    said, wanted = (rng.choice(names.UNIT_WORDS[unit]) for unit in (source, target))
    call = ExpectedCall("convert_units", {"value": value, "from_unit": said, "to_unit": wanted})
    slots = {"v": str(value), "u": said, "w": wanted, "name": draw.name(names.PERSONS)}
    return Ask("convert", slots, (call,), first_result)


# --- notes ------------------------------------------------------------------------------------------------------


def note_text(draw: Draw) -> str:
    """A short text to note, made of names and numbers of the draw's part."""
    items, persons = draw.names(names.ITEMS, 2), draw.names(names.PERSONS, 2)
    (number,) = draw.numbers(lambda rng: (rng.choice((rng.randint(2, 99), rng.randint(100, 9999))),))
    pattern = draw.rng.choice(names.NOTE_TEXTS.strip().splitlines()).strip()
    values = {"item": items[0], "item2": items[1], "person": persons[0], "person2": persons[1]}
    values |= {"city": draw.name(names.CITIES), "n": str(number), "h": str(draw.rng.randint(1, 12))}
    return fill(pattern, values)


def _fresh_key(draw: Draw, world: World) -> str:
    while True:
        key = draw.name(names.NOTE_KEYS)
        if key not in world.notes:
            return key


def set_note(draw: Draw, world: World) -> Ask:
    key, text = _fresh_key(draw, world), note_text(draw)
    call = ExpectedCall("set_note", {"key": key, "text": text})
    return Ask("set", {"key": key, "text": text, "name": draw.name(names.PERSONS)}, (call,), first_result)


def get_note(draw: Draw, world: World) -> Ask:
    key = _fresh_key(draw, world)
    world.notes[key] = note_text(draw)
    return Ask("get", {"key": key}, (ExpectedCall("get_note", {"key": key}),), first_result)


def recall(earlier: Ask) -> Ask:
    """Read back the note that the turn before has set."""
    key = earlier.slots["key"]
    return Ask("recall", {"key": key}, (ExpectedCall("get_note", {"key": key}),), first_result)


# --- the table --------------------------------------------------------------------------------------------------

# Table name, its key column, where keys come from, and the number or word columns.
THEMES: tuple[tuple[str, str, Sequence[str], dict[str, tuple[int, int] | Sequence[str]]], ...] = (
    ("people", "name", names.PERSONS, {"age": (4, 95), "city": names.CITIES}),
    ("people", "name", names.PERSONS, {"height": (140, 210), "weight": (40, 120)}),
    ("people", "name", names.PERSONS, {"age": (4, 95), "phone": (1000, 9999)}),
    ("players", "name", names.PERSONS, {"points": (1, 300), "games": (1, 40)}),
    ("players", "name", names.PERSONS, {"points": (1, 300), "age": (16, 45)}),
    ("pupils", "name", names.PERSONS, {"points": (1, 100), "room": (1, 60)}),
    ("workers", "name", names.PERSONS, {"salary": (1200, 9000), "city": names.CITIES}),
    ("products", "item", names.ITEMS, {"price": (1, 99), "stock": (0, 500)}),
    ("products", "item", names.ITEMS, {"price": (1, 99), "weight": (10, 900)}),
    ("products", "item", names.ITEMS, {"stock": (0, 500), "shelf": (1, 40)}),
    ("books", "title", names.WORDS, {"pages": (40, 900), "year": (1900, 2024)}),
    ("books", "title", names.WORDS, {"pages": (40, 900), "price": (3, 60)}),
    ("cities", "city", names.CITIES, {"schools": (2, 90), "parks": (1, 60)}),
    ("cities", "city", names.CITIES, {"hotels": (2, 400), "distance": (10, 900)}),
)


def make_table(draw: Draw) -> dict[str, Any]:
    """A table of four to seven rows, its names of the draw's part."""
    name, key, pool, columns = draw.rng.choice(THEMES)
    rows: list[list[Any]] = []
    for row in draw.names(pool, draw.rng.randint(4, 7)):
        rows.append([row, *(_cell(draw, values) for values in columns.values())])
    return {"name": name, "columns": [key, *columns], "rows": rows}


def _cell(draw: Draw, values: Any) -> int | str:
    return draw.rng.randint(*values) if isinstance(values, tuple) else draw.name(values)


def _number_column(draw: Draw, table: Mapping[str, Any]) -> str:
    first_row = zip(table["columns"], table["rows"][0], strict=True)
    return str(draw.rng.choice([column for column, value in first_row if isinstance(value, int)]))


def _query(kind: str, table: Mapping[str, Any], query: str, **slots: str) -> Ask:
    call = ExpectedCall("sql_query", {"query": query})
    return Ask(kind, {"table": table["name"], **slots}, (call,), first_cell)


def cell(draw: Draw, world: World) -> Ask:
    assert world.table is not None
    table, columns = world.table, world.table["columns"]
    column = draw.rng.choice(columns[1:])
    row = draw.rng.choice(table["rows"])[0]
    query = f"SELECT {column} FROM {table['name']} WHERE {columns[0]} = '{row}'"
    return _query("cell", table, query, row=row, col=column)


def count(draw: Draw, world: World) -> Ask:
    assert world.table is not None
    return _query("count", world.table, f"SELECT COUNT(*) FROM {world.table['name']}")


def _compare(kind: str, sign: str, draw: Draw, world: World) -> Ask:
    assert world.table is not None
    column = _number_column(draw, world.table)
    values = [row[world.table["columns"].index(column)] for row in world.table["rows"]]
    (limit,) = draw.numbers(lambda rng: (rng.randint(min(values) - 2, max(values) + 9),))
    query = f"SELECT COUNT(*) FROM {world.table['name']} WHERE {column} {sign} {limit}"
    return _query(kind, world.table, query, col=column, n=str(limit))


def more(draw: Draw, world: World) -> Ask:
    return _compare("more", ">", draw, world)


def less(draw: Draw, world: World) -> Ask:
    return _compare("less", "<", draw, world)


def _aggregate(kind: str, function: str, draw: Draw, world: World) -> Ask:
    assert world.table is not None
    column = _number_column(draw, world.table)
    return _query(kind, world.table, f"SELECT {function}({column}) FROM {world.table['name']}", col=column)


def most(draw: Draw, world: World) -> Ask:
    return _aggregate("most", "MAX", draw, world)


def least(draw: Draw, world: World) -> Ask:
    return _aggregate("least", "MIN", draw, world)


def total(draw: Draw, world: World) -> Ask:
    return _aggregate("sum", "SUM", draw, world)


# --- git --------------------------------------------------------------------------------------------------------


def _git_repositories() -> list[tuple[str, ...]]:
    return [(repo,) for repo in fixture_files()]


def _git_files() -> list[tuple[str, ...]]:
    return [(r, b, f) for r, branches in fixture_files().items() for b, files in branches.items() for f in files]


def show(draw: Draw, world: World) -> Ask:
    return _show("show", draw, *draw.of(_git_files()))


def show_main(draw: Draw, world: World) -> Ask:
    return _show("show_main", draw, *draw.of(_git_files(), lambda cell: cell[1] == "main"))


def _show(kind: str, draw: Draw, repo: str, branch: str, file: str) -> Ask:
    call = ExpectedCall("git_show", {"repo_path": repo, "revision": f"{branch}:{file}"})
    slots = {"repo": repo, "branch": branch, "file": file, "field": draw.rng.choice(names.GIT_FIELDS[file])}
    return Ask(kind, slots, (call,), first_result)


def _log(kind: str, draw: Draw) -> Ask:
    (repo,) = draw.of(_git_repositories())

    def read(results: Sequence[str]) -> str:
        # Who and what, whichever was asked for: one wording to learn.
        author, message = (re.search(rf"{field}: (.*)", results[0]) for field in ("Author", "Message"))
        assert author is not None and message is not None
        return f"{author[1]}: {message[1]}"

    call = ExpectedCall("git_log", {"repo_path": repo, "max_count": 1})
    return Ask(kind, {"repo": repo}, (call,), read)


def log(draw: Draw, world: World) -> Ask:
    return _log("log", draw)


def log_author(draw: Draw, world: World) -> Ask:
    return _log("log_author", draw)


def branches(draw: Draw, world: World) -> Ask:
    (repo,) = draw.of(_git_repositories())
    call = ExpectedCall("git_branch", {"repo_path": repo, "branch_type": "local"})

    def read(results: Sequence[str]) -> str:
        return ", ".join(line.strip("* ") for line in results[0].splitlines())

    return Ask("branches", {"repo": repo}, (call,), read)


# Each tool's kinds of request, with how often each is drawn.
KINDS: dict[str, dict[Maker, float]] = {
    "calculator": {add: 4, sub: 4, mul: 4, div: 3, two_sums: 0.7},
    "date_shift": {after: 4, before: 4},
    "days_between": {between: 1},
    "weekday": {weekday: 12, two_weekdays: 1},
    "convert_units": {convert: 1},
    "set_note": {set_note: 1},
    "get_note": {get_note: 1},
    "sql_query": {cell: 7, count: 1.5, more: 1.5, less: 1.5, most: 1.5, least: 1.5, total: 1.5},
    "git_show": {show: 3, show_main: 2},
    "git_log": {log: 3, log_author: 2},
    "git_branch": {branches: 1},
}
# How often each tool is what the user asks for.
TOOL_WEIGHTS: dict[str, float] = {
    "calculator": 2.4,
    "date_shift": 1.3,
    "days_between": 1.0,
    "weekday": 1.0,
    "convert_units": 1.4,
    "set_note": 1.1,
    "get_note": 1.0,
    "sql_query": 2.0,
    "git_show": 0.9,
    "git_log": 0.7,
    "git_branch": 0.3,
}
# In training, what is learnt late is asked for more often than users ask for it, and what is learnt at once less often.
TRAINING_FACTORS: dict[str, float] = {"calculator": 1.6, "date_shift": 1.6, "weekday": 0.5, "git_branch": 1.6}
