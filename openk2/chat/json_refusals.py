"""What of a client's JSON schema is let go, and what is refused, before llguidance compiles it.

llguidance refuses by itself what it knows that it cannot keep. Here is the rest:
notes that it would refuse, what it would keep wrongly, and what would take long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from openk2.chat.json_examples import subschemas

_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")  # hold schemas by names, not by keywords
_OF_VALUES = ("enum", "const", "default", "examples")  # hold values, which only look like schemas
_MOST_POINTERS = 128  # places that a schema refers to
_MOST_OBJECTS = 4096  # in a schema, itself and all within
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_NEAR = 1e-6  # from an exclusive bound: what lies between is that bound for whoever reads doubles


def without_notes(schema: Any, knows_format: Callable[[str], bool]) -> Any:
    """The schema without formats that llguidance does not know, and would refuse: in JSON Schema they are notes."""
    if isinstance(schema, list):
        return [without_notes(inner, knows_format) for inner in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _OF_NAMES and isinstance(value, Mapping):
            kept[key] = {name: without_notes(inner, knows_format) for name, inner in value.items()}
        elif key in _OF_VALUES:
            kept[key] = value
        elif key != "format" or not isinstance(value, str) or knows_format(value):
            kept[key] = without_notes(value, knows_format)
    return kept


def num_objects(schema: Mapping[str, Any]) -> int:
    """In a schema, itself and all within."""
    return sum(1 for _ in subschemas(schema))


def why_not(schema: Mapping[str, Any], lets_in: Callable[[float, Mapping[str, Any]], bool]) -> str:
    """What of the schema cannot be kept, "" if nothing is known."""
    return _countless(schema) or _endless(schema) or _inclusive(schema, lets_in)


def _inclusive(schema: Mapping[str, Any], lets_in: Callable[[float, Mapping[str, Any]], bool]) -> str:
    """An exclusive bound that llguidance lets in all the same, as 0 between 0 and 0.5, or by rounding."""
    for inner in subschemas(schema):
        bounds = {name: inner[name] for name in _BOUNDS if _is_number(inner.get(name))}
        for name in [name for name in bounds if name.startswith("exclusive")]:
            bound = bounds[name]
            near = any(0 < abs(other - bound) < _NEAR for other in bounds.values())
            if near or (inner.get("type") != "integer" and lets_in(bound, {"type": "number", **bounds})):
                return f"{name} {bound} beside {', '.join(f'{k} {v}' for k, v in bounds.items() if k != name)}"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _endless(schema: Mapping[str, Any]) -> str:
    """What would take long to compile, while others wait."""
    size = num_objects(schema)
    if size > _MOST_OBJECTS:
        return f"{size} objects, expected at most {_MOST_OBJECTS}"
    pointers = {str(inner["$ref"]) for inner in subschemas(schema) if "$ref" in inner}
    many = len(pointers) > _MOST_POINTERS
    return f"$ref to {len(pointers)} places, expected at most {_MOST_POINTERS}" if many else ""


def _countless(schema: Mapping[str, Any]) -> str:
    """What is wrong with counting properties: a name may come twice, and two of them are one once they are read."""
    for inner in subschemas(schema):
        least, required = inner.get("minProperties"), inner.get("required", ())
        if isinstance(least, int) and isinstance(required, list | tuple) and least > len(required) + 1:
            return "minProperties, more than one beyond the required ones"
    return ""
