"""Rubrics: success criteria as lines that people read and the judge checks.

A task's rubric is a tuple of such lines. `PATTERNS` is the whole language; a
line that fits none of them is an error, so that no criterion is silently
skipped. Turns are counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from openk2.protocols import Task

MAX_ANSWER_WORDS = 30

# Criterion -> the line's form. Tool-use pattern, success criteria, checkpoints, manner.
PATTERNS: dict[str, re.Pattern[str]] = {
    "pattern": re.compile(r"turn (?P<turn>\d+): calls (?P<tools>nothing|\w+(?:, \w+)*)"),
    "states": re.compile(r"turn (?P<turn>\d+): states (?P<answer>.+)", re.DOTALL),
    "mentions": re.compile(r"turn (?P<turn>\d+): the query mentions (?P<value>.+)"),
    "checkpoint": re.compile(r"turn (?P<turn>\d+): then note (?P<key>\S+) holds (?P<text>.+)", re.DOTALL),
    "grounded": re.compile(r"numbers in answers come from the user or a tool"),
    "brief": re.compile(r"answers have at most (?P<words>\d+) words"),
}


def rubric_of(task: Task, replies: Sequence[str]) -> tuple[str, ...]:
    """The task's criteria, from its turns; `replies` are what small talk is answered with ("" in other turns)."""
    lines = []
    for number, (turn, reply) in enumerate(zip(task.turns, replies, strict=True), 1):
        lines.append(f"turn {number}: calls {', '.join(call.name for call in turn.calls) or 'nothing'}")
        if reply or turn.answer:
            lines.append(f"turn {number}: states {reply.rstrip('.?!') or turn.answer}")
        for call in turn.calls:
            if call.name == "sql_query":
                lines += [f"turn {number}: the query mentions {value}" for value in _values(call.arguments["query"])]
            if call.name == "set_note":
                lines.append(f"turn {number}: then note {call.arguments['key']} holds {call.arguments['text']}")
    return (*lines, "numbers in answers come from the user or a tool", f"answers have at most {MAX_ANSWER_WORDS} words")


def _values(query: str) -> list[str]:
    """The values a query compares with: quoted words and numbers."""
    return [quoted or number for quoted, number in re.findall(r"'([^']*)'|\b(\d+)\b", query)]


def parse_criterion(line: str) -> tuple[str, re.Match[str]]:
    """The criterion's kind and what it fills in. Raises ValueError for a line the judge cannot check."""
    for kind, pattern in PATTERNS.items():
        match = pattern.fullmatch(line)
        if match:
            return kind, match
    raise ValueError(f"rubric: saw {line!r:.60}, expected one of the forms in rubric.PATTERNS")
