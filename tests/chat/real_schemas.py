"""Tools that others declared: ACEBench's (from OPENK2_ASSETS), BFCL's (from the wheel `bfcl-eval`, if installed)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# How BFCL and a few of ACEBench's files spell JSON schema's types.
_NAMES = {
    "object": "dict hash hashmap",
    "array": "list tuple arraylist set queue stack",
    "number": "float double",
    "integer": "long byte short bigint",
    "boolean": "bool",
    "string": "char",
}
_TYPES = {other: name for name, others in _NAMES.items() for other in others.split()}
_KNOWN = {"object", "array", "string", "number", "integer", "boolean", "null"}


def acebench(assets: Path) -> list[dict[str, Any]]:
    return _distinct(_items(sorted((assets / "datasets" / "acebench_en").glob("*.json"))))


def bfcl() -> list[dict[str, Any]]:
    """Nothing where the wheel is not installed."""
    spec = find_spec("bfcl_eval")
    if spec is None or spec.origin is None:
        return []
    data = Path(spec.origin).parent / "data"
    return _distinct(_items([*sorted(data.glob("*.json")), *sorted((data / "multi_turn_func_doc").glob("*.json"))]))


def _items(paths: list[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                item = json.loads(line)
            except ValueError:  # a file that is no list of lines declares no tools
                break
            declared = item.get("function", item if "parameters" in item else [])
            yield from declared if isinstance(declared, list) else [declared]


def _distinct(functions: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool declarations, no schema twice."""
    found: dict[str, dict[str, Any]] = {}
    for function in functions:
        schema = _standard(function.get("parameters") or function.get("arguments") or {})
        key = json.dumps([function["name"], schema], sort_keys=True)
        found.setdefault(key, {"type": "function", "function": {"name": function["name"], "parameters": schema}})
    return list(found.values())


def _standard(schema: Any) -> Any:
    """With JSON schema's own names of types; a type that it has no name for says nothing."""
    if isinstance(schema, list):
        return [_standard(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _properties(value) if key == "properties" else _standard(value) for key, value in schema.items()}
    kind = found.get("type")
    if isinstance(kind, str):
        kind = _TYPES.get(kind.lower(), kind.lower())
        found["type"] = kind
        if kind not in _KNOWN:
            del found["type"]
    return found


def _properties(value: Any) -> Any:
    return {name: _standard(schema) for name, schema in value.items()} if isinstance(value, dict) else value
