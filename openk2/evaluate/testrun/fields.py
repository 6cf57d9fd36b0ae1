"""Strict reading of JSON that people write: every complaint names the place, what was seen and what was expected.

`where` is always "file: field". Left out: data sets laid out by others (`openk2.evaluate.dataset_files`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from openk2.config.overrides import nearest_name

_SHOWN = 60  # characters of a value quoted in a message


def parse_json(text: str) -> Any:
    """A JSON text's value. ValueError for what Python reads beyond JSON: NaN, infinities, half a surrogate pair."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair") from None
    return value


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: saw bytes that are not UTF-8 at offset {error.start}, expected UTF-8 text") from None


def read_json(text: str, where: str) -> dict[str, Any]:
    """The object that a file or line holds."""
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{where}: saw broken JSON ({error.msg} at {place}), expected one object; mend it") from None
    except ValueError as error:
        raise ValueError(f"{where}: saw broken JSON ({error}), expected one object; mend it") from None
    return an_object(value, where)


def quoted(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def refuse(where: str, value: object, expected: str) -> NoReturn:
    raise ValueError(f"{where}: saw {quoted(value)}, expected {expected}")


def an_object(value: Any, where: str, known: Collection[str] = (), required: Collection[str] = ()) -> dict[str, Any]:
    """An object without keys other than the `known` (any, where none are named) and with all the `required`."""
    if not isinstance(value, dict):
        refuse(where, value, "an object")
    for key in value:
        if known and key not in known:
            names = sorted(known)
            raise ValueError(
                f"{where}: saw an unknown key {quoted(key)}, expected one of {', '.join(names)}"
                f"{nearest_name(key, names)}"
            )
    for key in required:
        if key not in value:
            raise ValueError(f"{where}: saw no {key!r}, expected it; add it")
    return value


def a_text(value: Any, where: str) -> str:
    """Text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        refuse(where, value, "text that is not blank")
    return value


def texts(value: Any, where: str) -> tuple[str, ...]:
    """One text, or a list of some."""
    listed = value if isinstance(value, list) else [value]
    if not listed:
        refuse(where, value, "a text, or a list of some")
    return tuple(a_text(entry, where) for entry in listed)


def a_number(value: Any, where: str, *, least: float = -math.inf, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        refuse(where, value, f"a number{_bounds(least, most)}")
    return value


def an_integer(value: Any, where: str, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        refuse(where, value, f"a whole number of at least {least}")
    return value


def _bounds(least: float, most: float) -> str:
    if math.isfinite(least) and math.isfinite(most):
        return f" from {least:g} to {most:g}"
    return f" of at least {least:g}" if math.isfinite(least) else ""


def a_schema(value: Any, where: str) -> dict[str, Any]:
    """A JSON schema whose references point into itself, so that judging by it can neither fail nor fetch anything."""
    schema = an_object(value, where)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(
            f"{where}: saw a schema that is none ({error.message}), expected JSON Schema 2020-12"
        ) from None
    for reference in _references(schema):
        if not _resolves(schema, reference):
            refuse(where, reference, "references that point into the schema itself, like #/$defs/NAME")
    return schema


def _references(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if key in ("$ref", "$dynamicRef") and isinstance(entry, str):
                yield entry
            yield from _references(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _references(entry)


def _resolves(schema: Any, reference: str) -> bool:
    if reference != "#" and not reference.startswith("#/"):
        return False
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(schema, dict) or name not in schema:
            return False
        schema = schema[name]
    return True
