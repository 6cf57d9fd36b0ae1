"""Which numbers, dates and names are held out, decided by a hash and by nothing else.

Every value that a task says is drawn through a `Draw` of one part. A `Draw`
redraws until the value's hash falls in its own part, so no held-out name, date
or combination of numbers can stand in a training task, whatever the seed.
A word that the phrase tables or the git fixture use can never be held out: it
counts as training. A model that meets a few hundred names again and again
learns them by heart and says them in place of new ones; so many names of
training tasks are strangers, drawn from words, pieces of words and syllables without end. Left
out: values that tools compute (a sum may equal any number).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from functools import cache, lru_cache
from typing import TypeVar

from openk2.environments.git_fixture import fixture_files, fixture_log
from openk2.posttrain.synth import names
from openk2.posttrain.synth.phrases import GRAMMAR

HELD_OUT_SHARE = 8  # one value in so many
STRANGER_SHARE = 0.75  # of the names in training tasks; the others are of the pools
LONGEST_GLUED = 10  # letters
_FIRST_DAY = date(1995, 1, 1)
_NUM_DAYS = 365 * 40
_T = TypeVar("_T")


def held_out_name(name: str) -> bool:
    """Whether this name (of a person, a city, a note, a thing) belongs to the held-out part."""
    return _hashed("name", name.lower()) and name.lower() not in _common_words()


def held_out_numbers(*numbers: int | float) -> bool:
    """Whether this combination of numbers, in any order, belongs to the held-out part."""
    return _hashed("numbers", ",".join(f"{number:g}" for number in sorted(numbers)))


def held_out_date(day: date) -> bool:
    """Whether this date belongs to the held-out part."""
    return _hashed("date", day.isoformat())


class Draw:
    """Random values of one part of the split."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out

    def numbers(self, draw: Callable[[random.Random], tuple[_T, ...]]) -> tuple[_T, ...]:
        """What `draw` gives, redrawn until the combination falls in this part."""
        while True:
            values = draw(self.rng)
            if held_out_numbers(*values) == self.held_out:  # type: ignore[arg-type]
                return values

    def day(self) -> date:
        """A date between 1995 and 2034."""
        while True:
            day = _FIRST_DAY + timedelta(days=self.rng.randrange(_NUM_DAYS))
            if held_out_date(day) == self.held_out:
                return day

    def day_after(self, first: date, longest: int) -> date:
        """A date 1 to `longest` days later."""
        while True:
            day = first + timedelta(days=self.rng.randint(1, longest))
            if held_out_date(day) == self.held_out:
                return day

    def name(self, pool: Sequence[str]) -> str:
        """One of `names.PERSONS`, `CITIES`, `NOTE_KEYS`, `ITEMS` or `WORDS`, or in training a stranger in its place."""
        if not self.held_out and self.rng.random() < STRANGER_SHARE:
            return self._stranger(capital=pool[0][0].isupper())
        return self.rng.choice(_part(tuple(pool), self.held_out))

    def names(self, pool: Sequence[str], count: int) -> list[str]:
        """Different names, `count` of them or as many as the pool's part has."""
        found: list[str] = []
        count = min(count, len(_part(tuple(pool), self.held_out)))
        while len(found) < count:
            name = self.name(pool)
            if name not in found:
                found.append(name)
        return found

    def _stranger(self, capital: bool) -> str:
        """A word or an invented name that is not held out and means nothing to the phrase tables."""
        rng = self.rng
        while True:
            word = rng.choice((_word, _syllables, _glued, _glued))(rng)
            if word not in _common_words() and not held_out_name(word):
                return word.capitalize() if capital else word

    def of(
        self, cells: Sequence[tuple[str, ...]], keep: Callable[[tuple[str, ...]], bool] | None = None
    ) -> tuple[str, ...]:
        """One of a finite fixture's cells that `keep` accepts; those of lowest hash are held out, at least one."""
        ranked = sorted(cells, key=lambda cell: hashlib.sha256("/".join(cell).encode()).digest())
        border = -(-len(ranked) // HELD_OUT_SHARE)
        part = ranked[:border] if self.held_out else ranked[border:]
        return self.rng.choice([cell for cell in part if keep is None or keep(cell)])


def _word(rng: random.Random) -> str:
    return rng.choice(names.STRANGERS)


def _syllables(rng: random.Random) -> str:
    parts = (names.ONSETS, names.NUCLEI, names.CODAS)
    return "".join(rng.choice(part) for _ in range(rng.choice((2, 2, 3))) for part in parts)


def _glued(rng: random.Random) -> str:
    """The front of one word and the back of another, either of them whole at times."""
    while True:
        front, back = (rng.choice(rng.choice((names.EVERYDAY, names.STRANGERS))) for _ in range(2))
        word = front[: rng.randint(2, len(front))] + back[rng.randint(0, len(back) - 2) :]
        if len(word) <= LONGEST_GLUED:
            return word


@lru_cache(maxsize=64)
def _part(pool: tuple[str, ...], held_out: bool) -> list[str]:
    return [name for name in pool if held_out_name(name) == held_out]


@lru_cache(maxsize=65536)
def _hashed(kind: str, text: str) -> bool:
    return hashlib.sha256(f"{kind}:{text}".encode()).digest()[0] % HELD_OUT_SHARE == 0


@cache
def _common_words() -> frozenset[str]:
    facts = " ".join((names.FACTS, names.NOTE_TEXTS, *names.OPPOSITES, *names.THINGS))
    files = [line for branches in fixture_files().values() for found in branches.values() for line in found.values()]
    commits = [author for log in fixture_log().values() for author, _ in log]
    return frozenset(GRAMMAR.words() | set(re.findall(r"[a-z]+", " ".join((facts, *files, *commits)).lower())))
