"""Seeded random schemas of a tool's arguments, over what `json_grammar` is to keep."""

from __future__ import annotations

from typing import Any

import numpy as np

# Of common kinds: free text with a fixed end, counted classes, alternatives, optional parts, escapes, other scripts.
PATTERNS = [
    r"^.+\.csv$",
    r"^[A-Z]{3}-[0-9]{4}$",
    r"^(https?://)?[a-z0-9.-]+\.[a-z]{2,6}(/[\w.-]*)*$",
    r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$",
    r"^(north|south)-(east|west)( by (north|south))?$",
    r"^\d{4}-(0[1-9]|1[0-2])-\d{2}$",
    r"^#(?:[0-9a-f]{3}){1,2}$",
    r"^\"quoted\"\\$",
    r"^[\u4e00-\u9fa5]{2,4}$",
    r"^(.*/)?[^/]+\.(wav|mp3)$",
    r"begins$",
    r"^ends",
    r"within",
]
FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
# JSON schema's keywords that the grammar has no way to keep; now and then one is put in.
UNSUPPORTED: dict[str, Any] = {
    "uniqueItems": True,
    "not": {"type": "null"},
    "contains": {"type": "integer"},
    "propertyNames": {"maxLength": 3},
    "dependentRequired": {"a": ["b"]},
    "if": {"required": ["a"]},
}
_WORDS = ["red", "green blue", "ä", "🙂", 'a"b', "back\\slash", "<|im_end|>", "<|tool_call_end|>", "", "null", "1"]
_NAMES = ["a", "b", "size", "first-name", "名前", "<|im_end|>", 'q"t', "x.y", "_"]


class Schemas:
    """`arguments()` gives an object's schema; each is drawn anew from the seed's stream."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._refs: list[str] = []

    def arguments(self) -> dict[str, Any]:
        names = [f"d{at}" for at in range(self._below(3))]
        self._refs = [f"#/$defs/{name}" for name in names]
        # A definition that refers to itself or to another always has a way round: an option, or an empty array.
        definitions = {name: self._definition() for name in names}
        schema = self._object(3)
        if self._chance(0.05):
            keyword = str(self._rng.choice(list(UNSUPPORTED)))
            schema[keyword] = UNSUPPORTED[keyword]
        return {**schema, "$defs": definitions} if definitions else schema

    def _definition(self) -> dict[str, Any]:
        again, kind = self._choice(self._refs), self._below(4)
        if kind == 0:  # the base case sorts behind the case that goes deeper
            deeper = {"kind": {"const": "add"}, "left": {"$ref": again}, "right": {"$ref": again}}
            base = {"kind": {"const": "value"}, "value": self._leaf()}
            return {"anyOf": [self._closed(deeper), self._closed(base)]}
        if kind == 1:
            return self._closed({"name": self._leaf(), "children": {"type": "array", "items": {"$ref": again}}})
        if kind == 2:
            return self._closed({"next": {"anyOf": [{"$ref": again}, {"type": "null"}]}, "item": self._leaf()})
        return self._leaf()

    def _closed(self, properties: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def _any(self, depth: int) -> dict[str, Any]:
        draw = self._below(10)
        if depth > 0 and draw < 2:
            return self._object(depth - 1)
        if depth > 0 and draw < 4:
            return self._array(depth - 1)
        if depth > 0 and draw == 4:
            return {"anyOf": [self._any(depth - 1) for _ in range(2 + self._below(2))]}
        if draw == 5 and self._refs:
            return {"$ref": self._choice(self._refs)}
        return self._leaf()

    def _object(self, depth: int) -> dict[str, Any]:
        names = [str(name) for name in self._rng.permutation(_NAMES)[: self._below(5)]]
        schema: dict[str, Any] = {"type": "object", "properties": {name: self._any(depth) for name in names}}
        required = [name for name in names if self._chance(0.6)]
        if required or self._chance(0.5):
            schema["required"] = required
        others = self._below(5)
        if others == 4:
            schema["patternProperties"] = {"^[k-p]": self._leaf()}
        if others < 2:
            schema["additionalProperties"] = False
        elif others == 2:
            schema["additionalProperties"] = self._leaf()
        return schema

    def _array(self, depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array", "items": self._any(depth)}
        least = self._below(3)
        if least:
            schema["minItems"] = least
        if self._chance(0.5):
            schema["maxItems"] = least + self._below(3)
        if self._chance(0.1):
            schema["prefixItems"] = [self._leaf() for _ in range(1 + self._below(2))]
        return schema

    def _leaf(self) -> dict[str, Any]:
        draw = self._below(8)
        if draw == 0:
            words: list[Any] = [str(word) for word in self._rng.permutation(_WORDS)[: 1 + self._below(4)]]
            return {"enum": words + [1, None, True, {"a": [1.5]}][: self._below(3)]}
        if draw == 1:
            return {"const": [self._choice(_WORDS), -3, {"x": [None, False]}][self._below(3)]}
        if draw == 2:
            return {"type": self._choice(["boolean", "null"])}
        if draw == 3:
            return {"type": [self._choice(["string", "integer", "boolean"]), "null"]}
        return self._number() if draw < 6 else self._string()

    def _number(self) -> dict[str, Any]:
        whole = self._chance(0.5)
        schema: dict[str, Any] = {"type": "integer" if whole else "number"}
        low = int(self._rng.integers(-1000, 1000)) * (1 if whole else 0.25)
        if self._chance(0.6):
            schema[self._choice(["minimum", "exclusiveMinimum"])] = low
        if self._chance(0.6):
            schema[self._choice(["maximum", "exclusiveMaximum"])] = low + 2 + self._below(1000)
        if whole and self._chance(0.1):
            schema["multipleOf"] = [2, 5, 7, 60][self._below(4)]
        return schema

    def _string(self) -> dict[str, Any]:
        draw = self._below(4)
        if draw == 0:
            return {"type": "string", "pattern": self._choice(PATTERNS)}
        if draw == 1:
            return {"type": "string", "format": self._choice(FORMATS)}
        schema: dict[str, Any] = {"type": "string"}
        least = self._below(6)
        if draw == 2:
            schema["minLength"] = least
        if self._chance(0.5):
            schema["maxLength"] = least + self._below(10)
        return schema

    def _below(self, limit: int) -> int:
        return int(self._rng.integers(limit))

    def _chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def _choice(self, options: list[str]) -> str:
        return options[self._below(len(options))]
