"""For each keyword of JSON schema a schema in which ignoring the keyword would soon give a wrong value."""

from __future__ import annotations

from typing import Any

_FEW: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 5}
_BITS: dict[str, Any] = {"type": "array", "items": {"enum": [0, 1]}, "maxItems": 3}
_AB: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": [0, 1]}, "b": {"enum": [0, 1]}},
    "additionalProperties": False,
}
_SHORT: dict[str, Any] = {"type": "string", "maxLength": 3}
_REQUIRED: dict[str, Any] = {"required": ["a"]}

# The keyword, its value, and the schema that it is put into.
CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("type", "integer", {"maximum": 5}),
    ("type", ["integer", "null"], {"maximum": 5}),
    ("enum", ["x", 1, None], {}),
    ("enum", ["x", 1, None], {"type": ["integer", "null"]}),
    ("enum", [1, 3, 7, 9], {"minimum": 5}),
    ("const", {"a": [1]}, {}),
    ("minimum", 3, {**_FEW}),
    ("minimum", 3, {}),
    ("maximum", 3, {**_FEW}),
    ("exclusiveMinimum", 3, {**_FEW}),
    ("exclusiveMaximum", 3, {**_FEW}),
    ("multipleOf", 3, {**_FEW, "maximum": 100}),
    ("multipleOf", 0.25, {"type": "number", "minimum": 0, "maximum": 9}),
    ("minLength", 2, {**_SHORT}),
    ("minLength", 2, {}),
    ("maxLength", 2, {"type": "string"}),
    ("pattern", "^a?b$", {**_SHORT}),
    ("pattern", "b", {**_SHORT}),
    ("format", "ipv4", {"type": "string"}),
    ("minItems", 2, {**_BITS}),
    ("maxItems", 2, {"type": "array", "items": {"enum": [0, 1]}}),
    ("items", {"type": "null"}, {"type": "array"}),
    ("items", False, {"type": "array", "prefixItems": [{"type": "null"}]}),
    ("prefixItems", [{"type": "null"}, _FEW], {"type": "array"}),
    ("properties", {"a": {"type": "null"}}, {**_AB, **_REQUIRED}),
    (
        "properties",
        {"a": False},
        {"type": "object", "patternProperties": {"^[ab]$": {}}, "additionalProperties": False},
    ),
    ("required", ["b", "a"], {**_AB}),
    ("additionalProperties", False, {"type": "object", "properties": {"a": {"type": "null"}}}),
    ("additionalProperties", {"type": "null"}, {"type": "object"}),
    ("patternProperties", {"^.": {"type": "null"}}, {"type": "object"}),
    ("patternProperties", {"^a": {"maximum": 3}}, {"type": "object", "properties": {"ab": _FEW}, "required": ["ab"]}),
    ("allOf", [{"minimum": 2}, {"maximum": 3}], {**_FEW}),
    ("allOf", [{"pattern": "^a"}, {"pattern": "b$"}], {**_SHORT}),
    ("allOf", [{"required": ["a"]}, {"properties": {"a": {"const": 1}}}], {**_AB}),
    ("anyOf", [{"maximum": 1}, {"minimum": 5}], {**_FEW}),
    ("anyOf", [{"required": ["a"]}, {"required": ["b"]}], {**_AB}),
    ("oneOf", [{"type": "null"}, {**_FEW, "maximum": 2}], {}),
    ("oneOf", [{"maximum": 3}, {"minimum": 2}], {**_FEW}),
    ("not", {"const": 1}, {**_FEW}),
    ("if", {"required": ["a"]}, {**_AB, "then": {"required": ["b"]}}),
    ("if", {"required": ["a"]}, {**_AB, "else": {"required": ["b"]}}),
    ("dependentRequired", {"a": ["b"]}, {**_AB}),
    ("dependentSchemas", {"a": {"required": ["b"]}}, {**_AB}),
    ("propertyNames", {"maxLength": 1}, {"type": "object", "additionalProperties": {"type": "null"}}),
    ("minProperties", 1, {**_AB}),
    ("minProperties", 2, {"type": "object", "additionalProperties": {"type": "null"}}),
    ("maxProperties", 1, {**_AB, **_REQUIRED}),
    ("maxProperties", 0, {"type": "object", "additionalProperties": {"type": "null"}}),
    ("unevaluatedProperties", False, {"type": "object", "allOf": [{"properties": {"a": {"type": "null"}}}]}),
    ("unevaluatedItems", False, {"type": "array", "prefixItems": [{"type": "null"}]}),
    ("contains", {"const": 1}, {**_BITS}),
    ("minContains", 2, {**_BITS, "minItems": 2, "contains": {"const": 1}}),
    ("maxContains", 1, {**_BITS, "contains": {"const": 1}}),
    ("uniqueItems", True, {**_BITS}),
    ("$ref", "#/$defs/n", {"$defs": {"n": {"type": "null"}}}),
    ("$ref", "#/$defs/n", {"maximum": 3, "$defs": {"n": {**_FEW}}}),
    ("$ref", "#n", {"$defs": {"n": {"$anchor": "n", "type": "null"}}}),
    ("$dynamicRef", "#n", {"$defs": {"n": {"$dynamicAnchor": "n", "type": "null"}}}),
]
