"""Reading data sets that were laid out by others: every complaint names file, line and field.

`subset` is the one way a limit is applied: by seed and task name, so that the
same limit means the same items on every machine.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")


def subset(items: Sequence[ItemT], limit: int | None, seed: int, name: str) -> list[ItemT]:
    """`limit` of the items in their own order, drawn by (seed, name); all of them if there are no more."""
    if limit is None or limit >= len(items):
        return list(items)
    chosen = random.Random(f"{seed}:{name}").sample(range(len(items)), limit)
    return [items[index] for index in sorted(chosen)]


def require_file(data: Path | None, relative: str, task: str) -> Path:
    """The path of a data file, or a ValueError that says where it was expected."""
    if data is None:
        raise ValueError(f"{task}: saw no data folder, expected one that holds {relative}; give --data FOLDER")
    path = Path(data) / relative
    if not path.is_file():
        raise ValueError(f"{task}: saw no file {path}, expected {relative} under the data folder; check --data")
    return path


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that is not blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: saw bytes that are not UTF-8 at offset {error.start}, expected UTF-8 text") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number}: saw broken JSON ({error.msg} at column {error.colno}), expected one object a line"
            ) from None
        if not isinstance(value, dict):
            raise ValueError(f"{path}:{number}: saw a JSON {type(value).__name__}, expected an object")
        yield number, value


def text_field(path: Path, number: int, line: dict[str, Any], name: str) -> str:
    """A field that must be text and not blank."""
    value = line.get(name)
    if not isinstance(value, str) or not value.strip():
        seen = "nothing" if name not in line else f"{value!r:.60}"
        raise ValueError(f"{path}:{number}: field {name!r}: saw {seen}, expected text that is not blank")
    return value


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows by column name; the header must be exactly `columns`."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    header = rows[0] if rows else []
    if header != list(columns):
        raise ValueError(f"{path}: saw header {','.join(header)[:80]!r}, expected {','.join(columns)!r}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(columns):
            raise ValueError(f"{path}: row {number}: saw {len(row)} columns, expected {len(columns)}")
    return [dict(zip(columns, row, strict=True)) for row in rows[1:]]
