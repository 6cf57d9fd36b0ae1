"""Sentence skeletons: a user's words with every value masked, to compare phrasings whatever they speak of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from openk2.environments.git_fixture import fixture_files
from openk2.posttrain.synth import names
from openk2.posttrain.synth.kinds import THEMES
from openk2.protocols import Task

_MONTH = "|".join(names.MONTHS)
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


_ANY = re.compile(
    rf"(?<!\w)(?:{'|'.join(re.escape(w) for w in sorted(_word_values(), key=len, reverse=True))})(?!\w)", re.I
)


def skeleton(sentence: str, arguments: Mapping[str, Any] | None = None) -> str:
    """Small letters, no marks but arithmetic ones; `#` for a date or number, `@` for a name or an argument's text."""
    for value in sorted((v for v in (arguments or {}).values() if isinstance(v, str)), key=len, reverse=True):
        sentence = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", " @ ", sentence, flags=re.I)
    sentence = _ANY.sub("@", _NUMBER.sub("#", _DATE.sub("#", sentence)))
    return " ".join(re.findall(r"[a-z']+|[#@+*/%=]", sentence.lower()))


def skeletons(task: Task) -> list[str]:
    """One for each user turn."""
    return [
        skeleton(turn.user, {k: v for call in turn.calls for k, v in call.arguments.items()}) for turn in task.turns
    ]


def words(sentence: str) -> set[str]:
    """The sentence's words, values masked."""
    return set(re.findall(r"[a-z']+", sentence))
