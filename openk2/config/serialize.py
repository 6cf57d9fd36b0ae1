"""Configs to plain data and back, and a digest that names a config.

Invariants: `from_dict(type(c), to_dict(c)) == c`, also through JSON; nothing
is filled in or ignored on the way back, so that a run folder written by other
code is refused rather than half understood. Left out: migrations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from openk2.config.overrides import nearest_name
from openk2.config.schema import ConfigError, checked, field_specs, placed

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON-ready data: tuples become lists, whole numbers in float fields floats."""
    result: dict[str, Any] = {}
    for name, spec in field_specs(type(config)).items():
        value = getattr(config, name)
        if spec.is_section:
            result[name] = None if value is None else to_dict(value)
        else:
            value = checked(spec, value)
            result[name] = list(value) if spec.many and value is not None else value
    return result


def from_dict(cls: type[Config], data: Mapping[str, Any], *, path: str = "") -> Config:
    """The config of type `cls` that `data` spells, every field present and of its type.

    `path` names the place of `data` in a larger config. Raises `ConfigError`.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path or cls.__name__}: saw {type(data).__name__}, expected a mapping of its fields")
    specs = field_specs(cls)
    prefix = f"{path}." if path else ""
    for name in data:
        if name not in specs:
            near = nearest_name(str(name), list(specs)) or f" ({', '.join(specs)})"
            raise ConfigError(f"{prefix}{name}: saw an unknown field, expected one of {cls.__name__}'s{near}")
    values: dict[str, Any] = {}
    for name, spec in specs.items():
        if name not in data:
            raise ConfigError(f"{prefix}{name}: saw no value, expected {spec.expected()}")
        value = data[name]
        if spec.is_section and not (value is None and spec.optional):
            values[name] = from_dict(spec.kind, value, path=prefix + name)
            continue
        try:
            values[name] = checked(spec, value)
        except ValueError:
            raise ConfigError(f"{prefix}{name}: saw {value!r}, expected {spec.expected()}") from None
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(placed(str(error), path)) from None


def digest(config: Any) -> str:
    """SHA-256 of a config's content, in hex: equal configs have equal digests, on any machine."""
    text = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
