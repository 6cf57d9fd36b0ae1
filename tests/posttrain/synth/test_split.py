"""Held-out names, dates and number combinations never stand in a training task, whatever the seed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from openk2.environments.arithmetic import operands
from openk2.environments.dates import parse_date
from openk2.environments.units import canonical_unit
from openk2.posttrain.synth import held_out_tasks, names, write_held_out
from openk2.posttrain.synth.split import held_out_date, held_out_name, held_out_numbers
from openk2.posttrain.synth.tasks import make_plain, make_task
from openk2.protocols import Task, task_from_dict, task_to_dict

_POOLS = (*names.PERSONS, *names.CITIES, *names.NOTE_KEYS, *names.ITEMS, *names.WORDS)
_HELD_OUT = {name.lower() for name in _POOLS if held_out_name(name)}


def _numbers_said(task: Task) -> Iterator[tuple[float, ...]]:
    """The number combinations of the calls: operands, converted values, thresholds."""
    for turn in task.turns:
        for call in turn.calls:
            if call.name == "calculator":
                yield tuple(float(value) for value in operands(call.arguments["expression"]))
            elif call.name == "convert_units":
                yield (float(call.arguments["value"]),)
            elif call.name == "sql_query" and (limit := re.search(r"[<>] (-?\d+)", call.arguments["query"])):
                yield (float(limit[1]),)


def _dates_said(task: Task) -> Iterator[date]:
    for turn in task.turns:
        for call in turn.calls:
            yield from (parse_date(call.arguments[key]) for key in ("date", "start", "end") if key in call.arguments)


def _text(task: Task) -> str:
    return " ".join([task.system, str(task.setup), *(turn.user + " " + turn.answer for turn in task.turns)])


def _names_in(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower())) & _HELD_OUT


def test_training_tasks_hold_no_held_out_value() -> None:
    count = 0
    for index in range(3000):
        task = make_task(index % 7, index).task
        assert not any(held_out_numbers(*numbers) for numbers in _numbers_said(task))
        assert not any(held_out_date(day) for day in _dates_said(task))
        assert not _names_in(_text(task)), task
        count += 1
    assert count == 3000


def test_the_converter_knows_every_spelling_that_tasks_use() -> None:
    assert all(canonical_unit(word) == unit for unit, words in names.UNIT_WORDS.items() for word in words)


def test_lists_that_strangers_are_made_of_hold_no_held_out_name() -> None:
    assert not _HELD_OUT & {*names.STRANGERS, *names.EVERYDAY}


def test_plain_dialogues_hold_no_held_out_name() -> None:
    for index in range(1500):
        assert not _names_in(_text(make_plain(index % 5, index).task))


def test_held_out_tasks_hold_only_held_out_values() -> None:
    found_names: set[str] = set()
    for task in held_out_tasks(600, seed=1):
        assert all(held_out_date(day) for day in _dates_said(task))
        assert all(held_out_numbers(*numbers) for numbers in _numbers_said(task))
        found_names |= _names_in(_text(task))
    assert len(found_names) > 20


def test_both_parts_have_names() -> None:
    for pool in (names.PERSONS, names.CITIES, names.NOTE_KEYS, names.ITEMS, names.WORDS):
        share = sum(held_out_name(name) for name in pool) / len(pool)
        assert 0.03 < share < 0.25


def test_held_out_tasks_are_a_function_of_the_seed() -> None:
    assert held_out_tasks(40, seed=3) == held_out_tasks(40, seed=3)
    assert held_out_tasks(40, seed=3) != held_out_tasks(40, seed=4)


def test_write_held_out_reads_back(tmp_path: Path) -> None:
    write_held_out(tmp_path / "set.jsonl", 25, seed=9)
    lines = (tmp_path / "set.jsonl").read_text(encoding="utf-8").splitlines()
    assert [task_from_dict(json.loads(line)) for line in lines] == held_out_tasks(25, seed=9)
    assert all(task_to_dict(task_from_dict(json.loads(line))) == json.loads(line) for line in lines)
