"""Calendar arithmetic on given dates. Nothing here reads the clock or a time zone."""

from __future__ import annotations

import re
from datetime import date, timedelta

from openk2.protocols import ToolError

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def parse_date(text: str) -> date:
    """A date written YYYY-MM-DD (the other ISO forms are refused: one way to write it)."""
    if not _ISO.fullmatch(text):
        raise ToolError(f"not a date: {text[:20]!r}, expected YYYY-MM-DD")
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ToolError(f"no such date: {text}") from None


def date_add(start: str, days: int) -> str:
    """The ISO date `days` after `start` (before it, if negative)."""
    first = parse_date(start)
    try:
        return (first + timedelta(days=days)).isoformat()
    except OverflowError:
        raise ToolError("the resulting date is out of range") from None


def days_between(start: str, end: str) -> str:
    """Days from `start` to `end`, negative if `end` is earlier."""
    return str((parse_date(end) - parse_date(start)).days)


def weekday(day: str) -> str:
    """The English name of the day of the week."""
    return WEEKDAYS[parse_date(day).weekday()]
