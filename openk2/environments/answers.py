"""Whether a sentence states an answer, and states no other.

Numbers are compared as numbers ("1,776." is 1776), dates and versions whole,
words without regard to case and never inside other words. Hedging is a
competing answer: a number that nobody but the policy brought up, or another
member of the class the answer is from (Tuesday beside Monday). Left out:
numbers spelled as words, and negation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from openk2.environments.dates import WEEKDAYS

# A date, a number, or a version or time; "-" is a sign only where nothing stands before it ("12-5" is 12 and 5).
_ATOM = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])(?!\d)"  # "1000-25-40" is a subtraction
    r"|(?:(?<![\w)\]])-)?\d+(?:[.:]\d+)*"
)
# A digit in a word that begins with a letter is part of a name (openk2, gpt4.5), except for a version's "v" (v1.2).
_NAME = re.compile(r"(?<!\w)(?!v\d)[^\W\d]\w*(?:(?<=\d)[.:]\d+)*")
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,]*\d)")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?")
_CLASSES = (WEEKDAYS, ("yes", "no"), ("true", "false"))

Atom = Decimal | str


def states(answer: str, text: str) -> bool:
    """Whether `text` holds `answer`, as a number or as whole words."""
    wanted, given = normalise(answer), normalise(text)
    if not wanted:
        return False
    if _PLAIN.fullmatch(wanted):
        return Decimal(wanted) in atoms(text)
    # Not inside a longer word, number, date or version.
    return re.search(rf"(?<!\w)(?<!\d[.:/-]){re.escape(wanted)}(?!\w)(?![.:/-]\d)", given) is not None


def hedges(answer: str, text: str, sources: Iterable[str], classes: Iterable[Iterable[str]] = ()) -> bool:
    """Whether `text` also offers something else: neither `answer` nor anything said in `sources`.

    `classes` are sets of words that exclude each other, beside the weekdays,
    yes and no, true and false; a class counts if the answer is a member.
    """
    heard = list(sources)
    allowed = atoms(answer).union(*(atoms(source) for source in heard))
    # Who was given a date or a version may name its year.
    allowed |= {Decimal(part) for atom in allowed if isinstance(atom, str) for part in re.findall(r"\d+", atom)}
    if atoms(text) - allowed:
        return True
    for members in (*_CLASSES, *classes):
        words = {normalise(word) for word in members} - {""}
        if normalise(answer) in words:
            others = (word for word in words if not states(word, answer))
            if any(states(word, text) and not any(states(word, source) for source in heard) for word in others):
                return True
    return False


def atoms(text: str) -> set[Atom]:
    """The numbers (as values) and the dates, versions and times (as text) in a text; names hold none."""
    found = _ATOM.findall(_NAME.sub("_", normalise(text)))  # the "_" keeps a "-" after a name from being a sign
    return {Decimal(atom) if _PLAIN.fullmatch(atom) else atom for atom in found}


def normalise(text: str) -> str:
    """Case, spacing, minus signs and thousands separators made alike; a final period dropped."""
    plain = " ".join(text.casefold().replace("\u2212", "-").split())
    plain = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), plain)
    return plain.strip().rstrip(".!")
