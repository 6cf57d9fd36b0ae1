"""Command-line overrides: `--train.steps 200` on any tree of frozen config dataclasses.

Every option is the full dotted path of one field. What cannot be done exactly
as said is refused with a `ConfigError` of one line: an unknown or repeated
option, a value of the wrong type, outside the field's choices or refused by
the config itself, and an option without effect because of another setting.
Left out on purpose: aliases, abbreviations, single dashes and bare flags.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple, TypeVar

from openk2.config.schema import ConfigError, FieldSpec, checked, placed, walk

Config = TypeVar("Config")

NONZERO = "nonzero"  # in a field's `needs`: any value but 0, false and none
_INTEGER_LIMIT = 2**63
_NUMBER = re.compile(r"[+-]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)


def apply_overrides(config: Config, argv: Sequence[str]) -> Config:
    """`config` with the options of `argv` applied, all at once, so that their order does not matter.

    Each option is `--path value` or `--path=value`. Raises `ConfigError`.
    """
    specs = {path: spec for path, spec, _ in walk(config)}
    values: dict[str, Any] = {}
    for path, text in _options(specs, argv):
        if path in values:
            raise ConfigError(f"--{path}: saw it twice, expected each option once; drop one of them")
        values[path] = _parse(path, specs[path], text)
    for path in values:
        switched_off = next((other for other in values if path.startswith(f"{other}.")), None)
        if switched_off:
            raise ConfigError(f"--{path}: saw it beside --{switched_off} none, expected one or the other; drop one")
    changed = _replaced(config, values, "")
    for path in values:
        _refuse_ineffective(changed, path, specs[path])
    return changed


def _options(specs: dict[str, FieldSpec], argv: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of a known path and its text."""
    pairs = []
    words = iter(argv)
    for word in words:
        key, has_value, text = word.partition("=")
        path = key.removeprefix("--")
        if not key.startswith("--") or path not in specs:
            raise ConfigError(_unknown(specs, word, key))
        if specs[path].is_section and not specs[path].optional:
            raise ConfigError(_is_section(path, specs[path]))
        if not has_value:
            text = next(words, "")
        if not text or (not has_value and text.startswith("--")):
            seen = f"saw {text} next" if text else "saw no value"
            raise ConfigError(f"--{path}: {seen}, expected {specs[path].expected()}; write --{path} VALUE")
        pairs.append((path, text))
    return pairs


def _unknown(specs: dict[str, FieldSpec], word: str, key: str) -> str:
    """The message for a word that is no option."""
    path = key.lstrip("-").replace("-", "_")
    section = path.rpartition(".")[0]
    siblings = [other.rpartition(".")[2] for other in specs if other.rpartition(".")[0] == section]
    guesses = ["--" + guess for guess in nearest_paths(path, list(specs))]
    where = f"section {section}" if section and siblings else "the config"
    expected = "--SECTION.NAME VALUE" if not key.startswith("--") else f"an option of {where}"
    if key.startswith("--") and not guesses:
        expected += _listed(siblings)
    hint = f"; did you mean {' or '.join(guesses)}?" if guesses else "; --list-settings lists them all"
    return f"{word}: saw an unknown option, expected {expected}{hint}"


def _is_section(path: str, spec: FieldSpec) -> str:
    expected = f"one of its fields{_listed([field.name for field in dataclasses.fields(spec.kind)])}"
    none = f" or --{path} none" if spec.optional else ""
    return f"--{path}: saw a section, expected {expected}; write --{path}.NAME VALUE{none}"


def _listed(names: Sequence[str]) -> str:
    """The names in brackets, where they are few enough to read on one line."""
    return f" ({', '.join(names)})" if 0 < len(names) <= 16 else ""


def nearest_paths(path: str, known: Sequence[str], limit: int = 3) -> list[str]:
    """The dotted paths most like `path`, best first; the last name weighs more than the section.

    Initials count as well: `learning_rate` is like `lr`.
    """
    name = path.rpartition(".")[2]
    initials = "".join(part[:1] for part in name.split("_"))

    def likeness(other: str) -> float:
        last = other.rpartition(".")[2]
        names = 0.9 if initials == last else difflib.SequenceMatcher(None, name, last).ratio()
        return 0.75 * names + 0.25 * difflib.SequenceMatcher(None, path, other).ratio()

    ranked = sorted(((likeness(other), other) for other in known), key=lambda pair: -pair[0])
    best = ranked[0][0] if ranked else 0.0
    return [other for score, other in ranked[:limit] if score >= max(0.6, best - 0.12)]


def nearest_name(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?` for the known name most like `name`, or nothing where none is near."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def _parse(path: str, spec: FieldSpec, text: str) -> Any:
    if spec.optional and text == "none":
        return None
    if spec.is_section:
        raise ConfigError(_is_section(path, spec))
    try:
        value = [_PARSERS[spec.kind](part) for part in text.split(",")] if spec.many else _PARSERS[spec.kind](text)
        return checked(spec, value)
    except (ValueError, ArithmeticError):
        near = nearest_name(text, [str(choice) for choice in spec.choices or ()])
        raise ConfigError(f"--{path}: saw {text!r}, expected {spec.expected()}{near}") from None


def _parse_int(text: str) -> int:
    """Digits, underscores between them, and an exponent where the result is a whole number."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    number = Decimal(text)
    if abs(number) >= _INTEGER_LIMIT or number != number.to_integral_value():
        raise ValueError(text)
    return int(number)


def _parse_float(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text)


def _parse_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _parse_text(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


_PARSERS: dict[type, Callable[[str], Any]] = {
    int: _parse_int,
    float: _parse_float,
    bool: _parse_bool,
    str: _parse_text,
}


def _replaced(config: Any, values: dict[str, Any], prefix: str) -> Any:
    """`config` with `values` (by full path) in place; sections are rebuilt inside out."""
    changes = {}
    for field in dataclasses.fields(config):
        path, value = prefix + field.name, getattr(config, field.name)
        inner = any(other.startswith(f"{path}.") for other in values)
        if path in values:
            changes[field.name] = values[path]
        elif inner:
            section = _section_default(config, field.name) if value is None else value
            changes[field.name] = _replaced(section, values, f"{path}.")
    try:
        return dataclasses.replace(config, **changes)
    except ValueError as error:
        raise ConfigError(placed(str(error), prefix.rstrip("."))) from None


def _section_default(config: Any, name: str) -> Any:
    return next(spec.kind() for path, spec, _ in walk(config) if path == name)


def _refuse_ineffective(config: Any, path: str, spec: FieldSpec) -> None:
    if not spec.needs:
        return
    section = path.rpartition(".")[0]
    holder = config
    for name in section.split(".") if section else ():
        holder = getattr(holder, name)
    other, allowed = spec.needs
    actual = getattr(holder, other)
    if actual in allowed or (NONZERO in allowed and actual):
        return
    switch = f"{section}.{other}" if section else other
    raise ConfigError(
        f"--{path}: saw a value that would change nothing while {switch} is {shown(actual)}, "
        f"expected {switch} to be {_allowed(allowed)}; drop this option or change that one"
    )


def _allowed(values: Sequence[Any]) -> str:
    return " or ".join("other than 0" if value == NONZERO else shown(value) for value in values)


def shown(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(shown, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


class Option(NamedTuple):
    """One line of the help: `value` is the current one, `help` the comment beside the field in the source."""

    path: str
    type: str
    value: str
    help: str


def option_table(config: Any) -> list[Option]:
    """Every option of a config tree, in the order of its fields; for a command's help."""
    table = []
    for path, owner, spec, value in _with_owner(config):
        if spec.is_section:
            continue
        notes = [_comments(owner).get(spec.name, "")]
        if spec.needs:
            notes.append(f"counts only where {spec.needs[0]} is {_allowed(spec.needs[1])}")
        table.append(Option(path, spec.expected(), shown(value), "; ".join(filter(None, notes))))
    return table


def _with_owner(config: Any) -> list[tuple[str, type, FieldSpec, Any]]:
    owners: dict[str, type] = {"": type(config)}
    rows = []
    for path, spec, value in walk(config):
        if spec.is_section:
            owners[path] = spec.kind
        rows.append((path, owners[path.rpartition(".")[0]], spec, value))
    return rows


@cache
def _comments(cls: type) -> dict[str, str]:
    """The comment that closes each field's definition; none where the source is not at hand."""
    try:
        source = inspect.getsource(cls)
    except OSError:
        return {}
    names = {field.name for field in dataclasses.fields(cls)}
    comments: dict[str, str] = {}
    current = ""
    for token in tokenize.generate_tokens(io.StringIO(inspect.cleandoc(source)).readline):
        if token.type == tokenize.NAME and token.string in names and token.start[1] == 4:
            current = token.string
        elif token.type == tokenize.COMMENT and current and token.line.strip() != token.string:
            comments[current] = token.string.lstrip("# ")
    return comments
