"""Short examples of what a JSON schema asks for: hints on how a value of it, begun anywhere, can be ended.

Invariant: they are hints and no more. Whoever uses one asks a matcher whether it
is allowed, so that what is not understood here (look-around, `allOf`, ...) may
be left out, and a wrong example does no harm. `string_ends` is exact for plain
regular expressions: whatever has been written of a match, one of its ends
completes it. Nothing here grows with the numbers in a schema, only with its
text. Left out: examples of patterns that need more than `_LONGEST` characters,
and values that are neither objects nor arrays, which need no hint.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator

_LONGEST = 512  # characters of a pattern's match, ends of a pattern, items of an array
_LONGEST_VALUE = 4096  # characters
_MOST_ENDS = 2048  # of all patterns together
_CHARACTERS = "a0A_-. " + "".join(map(chr, range(33, 127)))  # in the order in which they are tried for a class
_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "P1D",
    "email": "a@b.co",
    "hostname": "a",
    "ipv4": "1.1.1.1",
    "ipv6": "::",
    "time": "00:00:00Z",
    "uri": "a:b",
    "uuid": "00000000-0000-0000-0000-000000000000",
}
_CLASS = re.compile(r"\[\^?(?:\\.|[^\]\\])*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL)
_CODE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))")
_GROUP = re.compile(r"\((?:\?(?::|P?<\w+>))?(?!\?)")
_REPEAT = re.compile(r"(?:(?P<sign>[*+?])|\{(?P<low>[0-9]{1,4})(?:,[0-9]*)?\})\??")


class _Part(NamedTuple):
    """A part of a pattern: a shortest match, and for each place within it a shortest way from there to its end."""

    shortest: str
    ends: frozenset[str]


_NOTHING = _Part("", frozenset([""]))
_META = Draft202012Validator(Draft202012Validator.META_SCHEMA)


class _Pattern:
    """A regular expression, read from left to right; ValueError for what is not known here."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def whole(self) -> _Part:
        part = self._alternatives()
        if self._at < len(self._text):
            raise ValueError("pattern: saw a closing bracket, expected the end")
        return part

    def _alternatives(self) -> _Part:
        part = self._sequence()
        while self._text.startswith("|", self._at):
            self._at += 1
            other = self._sequence()
            part = _Part(min(part.shortest, other.shortest, key=len), part.ends | other.ends)
        return part

    def _sequence(self) -> _Part:
        part = _NOTHING
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            part = _joined(part, self._repeated())
        return part

    def _repeated(self) -> _Part:
        part = self._atom()
        while match := _REPEAT.match(self._text, self._at):
            self._at = match.end()
            least = (1 if match["sign"] == "+" else 0) if match["sign"] else int(match["low"])
            if least * max(len(part.shortest), len(part.ends)) > _LONGEST:
                raise ValueError("pattern: saw a long repetition, expected a short one")
            optional = _Part("", part.ends | {""})
            for _ in range(least):
                optional = _joined(part, optional)
            part = optional
        return part

    def _atom(self) -> _Part:
        if self._text[self._at] == "(":
            return self._group()
        for kind in (_CLASS, _ESCAPE):
            if match := kind.match(self._text, self._at):
                self._at = match.end()
                return _character(match[0])
        char = self._text[self._at]
        self._at += 1
        if char in "^$":
            return _NOTHING
        char = "a" if char == "." else char
        return _Part(char, frozenset([char, ""]))

    def _group(self) -> _Part:
        match = _GROUP.match(self._text, self._at)
        if match is None:
            raise ValueError("pattern: saw a group of an unknown kind, expected a plain one")
        self._at = match.end()
        part = self._alternatives()
        if not self._text.startswith(")", self._at):
            raise ValueError("pattern: saw its end, expected a closing bracket")
        self._at += 1
        return part


def _joined(first: _Part, then: _Part) -> _Part:
    ends = frozenset(end + then.shortest for end in first.ends) | then.ends
    if max(len(first.shortest) + len(then.shortest), len(ends)) > _LONGEST:
        raise ValueError("pattern: saw a long one, expected a short one")
    return _Part(first.shortest + then.shortest, ends)


def _character(kind: str) -> _Part:
    """A character of a class or an escape, as Python reads them."""
    named = "".join(chr(int(short or long, 16)) for short, long in _CODE.findall(kind))
    try:
        known = re.compile(kind)
    except re.error:
        raise ValueError(f"pattern: saw {kind:.40}, expected what Python knows") from None
    char = next((char for char in _CHARACTERS + named + kind if known.fullmatch(char)), None)
    if char is None:
        raise ValueError(f"pattern: saw {kind:.40} without a common character, expected one with")
    return _Part(char, frozenset([char, ""]))


def _pattern(schema: Mapping[str, Any]) -> str | None:
    """The pattern of a string's schema, or one that stands for its format."""
    pattern, named = schema.get("pattern"), schema.get("format")
    if isinstance(pattern, str):
        return pattern
    return re.escape(_FORMATS[named]) if isinstance(named, str) and named in _FORMATS else None


def _read(pattern: str) -> _Part | None:
    try:
        return _Pattern(pattern).whole()
    except ValueError:
        return None


def subschemas(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every object in a schema, however deep, those that only look like schemas included."""
    waiting: list[Any] = [schema]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, Mapping):
            yield inner
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner


def string_ends(schema: Mapping[str, Any]) -> list[str]:
    """What can end a string of one of the schema's patterns or formats, as JSON with the closing quote; short first."""
    patterns = set(filter(None, map(_pattern, subschemas(schema))))
    for inner in subschemas(schema):
        if isinstance(inner.get("patternProperties"), Mapping):
            patterns |= set(inner["patternProperties"])
    parts = filter(None, map(_read, sorted(patterns)))
    ends = {json.dumps(end, ensure_ascii=False)[1:] for part in parts for end in part.ends}
    return sorted(ends - {'"'}, key=lambda end: (len(end), end))[:_MOST_ENDS]


def short_values(schema: Mapping[str, Any]) -> list[str]:
    """JSON of objects and arrays, one for each place that the schema refers to; short first.

    A walk through a recursive schema ends where it takes them. Found in rounds: what refers to nothing,
    then what refers to that only, and so on.
    """
    pointers = {inner["$ref"] for inner in subschemas(schema) if isinstance(inner.get("$ref"), str)}
    places = {pointer: _target(schema, pointer) for pointer in pointers}
    targets = {pointer: target for pointer, target in places.items() if _META.is_valid(target)}
    known: dict[str, str] = {}
    for _ in pointers:
        values = {pointer: _value(target, known) for pointer, target in targets.items()}
        found = {pointer: text for pointer, text in values.items() if text is not None}
        if found == known:
            break
        known = found
    return sorted((text for text in set(known.values()) if text[0] in "{["), key=lambda text: (len(text), text))


def _target(schema: Any, pointer: str) -> Any:
    """What a pointer into the schema points at; False, the schema of nothing, where there is no such place."""
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and key.isdecimal() and int(key) < len(schema):
            schema = schema[int(key)]
        else:
            schema = schema.get(key, False) if isinstance(schema, Mapping) else False
    return schema


def _shortest(texts: Iterable[str | None]) -> str | None:
    return min((text for text in texts if text is not None), key=len, default=None)


def _value(schema: Any, known: Mapping[str, str]) -> str | None:
    """A short value as JSON, None where none is seen; `known` has those of the schemas referred to."""
    if not isinstance(schema, Mapping):
        return "0" if schema is True else None
    if "const" in schema or "enum" in schema:
        return _shortest(_dump(value) for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return known.get(schema["$ref"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return _shortest(_value(option, known) for option in schema[key])
    kinds = schema.get("type", "object" if "properties" in schema else "array" if "items" in schema else "number")
    return _shortest(_of_type(kind, schema, known) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _of_type(kind: str, schema: Mapping[str, Any], known: Mapping[str, str]) -> str | None:
    if kind == "object":
        return _object(schema, known)
    if kind == "array":
        return _array(schema, known)
    if kind == "string":
        pattern = _pattern(schema)
        part = _NOTHING if pattern is None else _read(pattern)
        return None if part is None else _dump(part.shortest.ljust(min(int(schema.get("minLength", 0)), _LONGEST), "a"))
    return _number(schema) if kind in ("integer", "number") else "null" if kind == "null" else "true"


def _array(schema: Mapping[str, Any], known: Mapping[str, str]) -> str | None:
    before, least = schema.get("prefixItems", []), int(schema.get("minItems", 0))
    if least > _LONGEST:
        return None
    items = [_value(item, known) for item in before[:least]]
    if least > len(before):
        items += [_value(schema.get("items", True), known)] * (least - len(before))
    return _enclosed("[", items, "]")


def _object(schema: Mapping[str, Any], known: Mapping[str, str]) -> str | None:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    others = [name for name in required if name not in properties]
    members: list[str | None] = []
    for name in [*(name for name in properties if name in required), *others]:
        text = _value(properties.get(name, schema.get("additionalProperties", True)), known)
        members.append(None if text is None else f"{_dump(name)}:{text}")
    return _enclosed("{", members, "}")


def _enclosed(begin: str, parts: list[str | None], end: str) -> str | None:
    """None where a part is not known, or the whole is too long."""
    known = [part for part in parts if part is not None]
    text = begin + ",".join(known) + end
    return text if len(known) == len(parts) and len(text) <= _LONGEST_VALUE else None


def _number(schema: Mapping[str, Any]) -> str | None:
    """Of the multiples near the bounds one within them; of 1 where nothing else is said."""
    step = schema.get("multipleOf", 1)
    if not 1e-9 <= step <= 1e9:  # no hint: beside a large bound its multiples are beyond numbers
        return None
    above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    low, high = max(schema.get("minimum", -math.inf), above), min(schema.get("maximum", math.inf), below)
    near = [math.floor(bound / step) + more for bound in (low, high) if abs(bound) <= 1e99 for more in (-1, 0, 1, 2)]
    values = (count * step for count in (0, *near))
    return next((_dump(value) for value in values if low <= value <= high and above < value < below), None)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
