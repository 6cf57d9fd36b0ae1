"""Sentence skeletons: a user's words with every value masked, to compare phrasings whatever they speak of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from openk2.environments.dates import MONTHS
from openk2.environments.git_fixture import fixture_files
from openk2.posttrain.synth import names
from openk2.posttrain.synth.kinds import THEMES
from openk2.protocols import Task

_MONTH = "|".join(MONTHS)
_DATE = re.compile(
    rf"\b(?:\d{{1,2}} (?:{_MONTH}),? \d{{4}}|(?:{_MONTH}) \d{{1,2}},? \d{{4}}|\d{{4}}-\d\d-\d\d)\b", re.I
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def _word_values() -> list[str]:
    """Every word that a slot can be filled with: names, units, columns, repositories, ..."""
    pools = [*names.PERSONS, *names.CITIES, *names.NOTE_KEYS, *names.ITEMS, *names.WORDS, *names.THINGS]
    units = [word for words in names.UNIT_WORDS.values() for word in words]
    themes = [word for table, key, _, columns in THEMES for word in (table, key, *columns)]
    fixture = fixture_files()
    git = [*fixture, *(b for branches in fixture.values() for b in branches), *names.GIT_FIELDS]
    fields = [word for words in names.GIT_FIELDS.values() for word in words]
    return [*pools, *units, *themes, *git, *fields]


_VALUES = {value.lower() for value in _word_values()}
_PHRASES = "|".join(
    re.escape(value) for value in sorted(_VALUES, key=len, reverse=True) if " " in value or "/" in value
)
_PHRASE = re.compile(rf"(?<!\w)(?:{_PHRASES})(?!\w)")


def skeleton(sentence: str, arguments: Mapping[str, Any] | None = None) -> str:
    """Small letters, no marks but arithmetic ones; `#` for a date or number, `@` for a name or an argument's text."""
    for value in (arguments or {}).values():
        if isinstance(value, str) and " " in value:
            sentence = sentence.replace(value, " @ ")
    sentence = _PHRASE.sub("@", _NUMBER.sub("#", _DATE.sub("#", sentence)).lower())
    parts = re.findall(r"[a-z']+|[#@+*/%=]", sentence.replace("'s ", " 's "))
    return " ".join("@" if part in _VALUES else part for part in parts)


def skeletons(task: Task) -> list[str]:
    """One for each user turn."""
    return [
        skeleton(turn.user, {k: v for call in turn.calls for k, v in call.arguments.items()}) for turn in task.turns
    ]
