"""From a prompt's `check` to what judges by it. Several keys in one check must all hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openk2.evaluate.testrun import fields
from openk2.evaluate.testrun.call_checks import Calls
from openk2.evaluate.testrun.code_checks import UnitTests
from openk2.evaluate.testrun.text_checks import Contains, Exact, JsonSchema, Numeric, Regex
from openk2.evaluate.testrun.verdicts import Check

_PLAIN: dict[str, Callable[[Any, str], Check]] = {
    "exact": Exact.parse,
    "contains": Contains.parse,
    "regex": Regex.parse,
    "json_schema": JsonSchema.parse,
    "tool_call": Calls.parse,
}
_KEYS = (*_PLAIN, "numeric", "tolerance", "unit_tests", "entry_point")


def parse_checks(value: Any, where: str) -> tuple[Check, ...]:
    """The checks that an object names, in its order."""
    fields.an_object(value, where, _KEYS)
    for key, partner in (("tolerance", "numeric"), ("unit_tests", "entry_point"), ("entry_point", "unit_tests")):
        if key in value and partner not in value:
            raise ValueError(f"{where}: saw {key!r} without {partner!r}, expected both; add {partner!r}")
    found: list[Check] = []
    for key, given in value.items():
        if key in _PLAIN:
            found.append(_PLAIN[key](given, f"{where}.{key}"))
        elif key == "numeric":
            found.append(Numeric.parse(given, value.get("tolerance", 0), f"{where}.numeric"))
        elif key == "unit_tests":
            found.append(UnitTests.parse(given, value["entry_point"], f"{where}.unit_tests"))
    if not found:
        fields.refuse(where, value, "at least one check; leave the key out for none")
    return tuple(found)
