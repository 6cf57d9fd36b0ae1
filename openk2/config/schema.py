"""What a config dataclass declares about its fields, and how a value is checked against that.

A config is a tree of frozen dataclasses. A field is an integer, a finite
number, a boolean, a text, a tuple of those, another config (a section), or
one of these or None; anything else is a programming error and refused with
`TypeError`. Overrides and serialisation both read fields through this module,
so that a command line and a file obey the same rules.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


class ConfigError(ValueError):
    """A setting that cannot be used. The text is one line: where, what was seen, what was expected."""


@dataclass(frozen=True)
class FieldSpec:
    """One field: its kind (int, float, bool, str or a config class) and what else it takes."""

    name: str
    kind: type
    optional: bool  # None too
    many: bool  # a tuple of `kind`
    choices: tuple[Any, ...] | None
    needs: tuple[str, tuple[Any, ...]] | None  # without effect unless this sibling has one of these values

    @property
    def is_section(self) -> bool:
        return dataclasses.is_dataclass(self.kind)

    def expected(self) -> str:
        """What a value has to be, in words."""
        words = _KIND_WORDS.get(self.kind, f"the fields of {self.kind.__name__}")
        if self.choices:
            words = "one of " + ", ".join(map(str, self.choices))
        if self.many:
            words = f"a comma-separated list, each {words}"
        return f"{words}, or none" if self.optional else words


_KIND_WORDS: dict[type, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def field_specs(cls: type) -> dict[str, FieldSpec]:
    """The fields of a config class by name, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: _spec(cls, field, hints[field.name]) for field in dataclasses.fields(cls)}


def _spec(cls: type, field: dataclasses.Field[Any], hint: Any) -> FieldSpec:
    optional = many = False
    if isinstance(hint, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not types.NoneType]
        optional, hint = len(inner) < len(typing.get_args(hint)), inner[0] if len(inner) == 1 else hint
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (Ellipsis,):
        many, hint = True, typing.get_args(hint)[0]
    if hint not in _KIND_WORDS and not dataclasses.is_dataclass(hint):
        raise TypeError(f"{cls.__name__}.{field.name}: a config cannot hold {hint}")
    meta = field.metadata
    return FieldSpec(field.name, hint, optional, many, meta.get("choices"), meta.get("needs"))


def checked(spec: FieldSpec, value: Any) -> Any:
    """`value` in the field's own type. Raises `ValueError` saying only what was expected.

    A list stands for a tuple and an integer for a float, as JSON writes them.
    """
    if value is None and spec.optional:
        return None
    if spec.many:
        if not isinstance(value, (list, tuple)):
            raise ValueError(spec.expected())
        return tuple(_checked_one(spec, item) for item in value)
    return _checked_one(spec, value)


def _checked_one(spec: FieldSpec, value: Any) -> Any:
    if spec.kind is float and type(value) is int:
        value = float(value)
    if type(value) is not spec.kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(spec.expected())
    if spec.choices and value not in spec.choices:
        raise ValueError(spec.expected())
    return value


def placed(message: str, path: str) -> str:
    """A config's own message starts with its section; put before it what leads to the section at `path`."""
    outer = path.rpartition(".")[0]
    return f"{outer}.{message}" if outer else message


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, FieldSpec, Any]]:
    """Every field of a config tree with its dotted path and value; a section comes before its fields.

    A section that is None is walked through its defaults: its fields can be set, which switches it on.
    """
    for name, spec in field_specs(type(config)).items():
        value = getattr(config, name)
        yield prefix + name, spec, value
        if spec.is_section:
            yield from walk(spec.kind() if value is None else value, f"{prefix}{name}.")
