"""Calendar arithmetic on given dates. Nothing here reads the clock or a time zone."""

from __future__ import annotations

import re
from datetime import date, timedelta

from openk2.protocols import ToolError

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DIRECTIONS = {"after": 1, "before": -1}
MONTHS = tuple("January February March April May June July August September October November December".split())
_ISO = re.compile(r"(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})")
_DAY_FIRST = re.compile(r"(?P<day>[0-9]{1,2}) (?P<month>[A-Za-z]+),? (?P<year>[0-9]{4})")
_MONTH_FIRST = re.compile(r"(?P<month>[A-Za-z]+) (?P<day>[0-9]{1,2}),? (?P<year>[0-9]{4})")


def parse_date(text: str) -> date:
    """A date written 2024-05-26, 26 May 2024 or May 26, 2024: a caller may repeat what the user said."""
    line = " ".join(text.split())
    found = _ISO.fullmatch(line) or _DAY_FIRST.fullmatch(line) or _MONTH_FIRST.fullmatch(line)
    month = found["month"].capitalize() if found else ""
    if not found or not (month.isdecimal() or month in MONTHS):
        raise ToolError(f"not a date: {text[:20]!r}, expected YYYY-MM-DD")
    try:
        return date(int(found["year"]), int(month) if month.isdecimal() else MONTHS.index(month) + 1, int(found["day"]))
    except ValueError:
        raise ToolError(f"no such date: {line}") from None


def date_shift(direction: str, start: str, days: int) -> str:
    """The ISO date `days` "after" or "before" `start`."""
    if direction not in DIRECTIONS:
        raise ToolError(f"no such direction: {direction[:20]!r}, expected {' or '.join(DIRECTIONS)}")
    first = parse_date(start)
    try:
        return (first + timedelta(days=DIRECTIONS[direction] * days)).isoformat()
    except OverflowError:
        raise ToolError("the resulting date is out of range") from None


def days_between(start: str, end: str) -> str:
    """Days from `start` to `end`, negative if `end` is earlier."""
    return str((parse_date(end) - parse_date(start)).days)


def weekday(day: str) -> str:
    """The English name of the day of the week."""
    return WEEKDAYS[parse_date(day).weekday()]
