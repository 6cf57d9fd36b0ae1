"""A small phrase grammar: tables of alternatives that expand to what a user might type.

One line of a table is one alternative. In it `<name>` stands for another
table, `[x|y|]` for an inline choice (nested choices allowed), and `{slot}` for
a value that is filled in last. A *template* is an expansion whose slots are
still open; it is the unit in which phrasings are counted, and style (casing,
punctuation, typing errors) is applied to it, so that a slot's value is never
damaged.

Invariants: expansion is a pure function of the random stream; an unknown table
is an error when the grammar is built, not when it is drawn. Left out: weights
(write a line twice), agreement between words (use a slot for a word that must
be the same in two places).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

# A parsed alternative: literal text, a reference to a table, or an inline choice.
Node = str | tuple[str, str] | list["Alternative"]
Alternative = list[Node]

BOUND = ("core", "given", "ask")  # names that a frame leaves to `expand`'s caller
_TOKEN = re.compile(r"<([a-z_.]+)>|([\[\]|])")
_SLOT = re.compile(r"\{(\w+)\}")


class Grammar:
    """Tables of alternatives, parsed once; `expand` draws from them."""

    def __init__(self, tables: Mapping[str, str]) -> None:
        """`tables` maps a name to lines of alternatives. The names in `BOUND` may be left to `expand`.

        Raises ValueError where a line names a table that does not exist or leaves a bracket open.
        """
        self._tables = {name: [_parse(line) for line in _lines(text)] for name, text in tables.items()}
        for name, alternatives in self._tables.items():
            for alternative in alternatives:
                self._check(name, alternative)

    def __contains__(self, name: str) -> bool:
        return name in self._tables

    def words(self) -> set[str]:
        """Every word, in small letters, that some table spells out."""
        found: set[str] = set()
        for alternatives in self._tables.values():
            for alternative in alternatives:
                _collect(alternative, found)
        return found

    def expand(self, name: str, rng: random.Random, bind: Mapping[str, str] | None = None) -> str:
        """One template of table `name`; `bind` redirects table names (the frame's `<core>`, say)."""
        pieces: list[str] = []
        self._expand(name, rng, bind or {}, pieces)
        return tidy("".join(pieces))

    def _expand(self, name: str, rng: random.Random, bind: Mapping[str, str], out: list[str]) -> None:
        self._emit(rng.choice(self._tables[bind.get(name, name)]), rng, bind, out)

    def _emit(self, alternative: Alternative, rng: random.Random, bind: Mapping[str, str], out: list[str]) -> None:
        for node in alternative:
            if isinstance(node, str):
                out.append(node)
            elif isinstance(node, tuple):
                self._expand(node[1], rng, bind, out)
            else:
                self._emit(rng.choice(node), rng, bind, out)

    def _check(self, name: str, alternative: Alternative) -> None:
        for node in alternative:
            if isinstance(node, tuple) and node[1] not in BOUND and node[1] not in self._tables:
                raise ValueError(f"phrase table {name}: saw <{node[1]}>, expected one of the tables that exist")
            if isinstance(node, list):
                for inner in node:
                    self._check(name, inner)


def slots(template: str) -> set[str]:
    """Names of the template's open slots."""
    return set(_SLOT.findall(template))


def fill(template: str, values: Mapping[str, str]) -> str:
    """The sentence: each `{slot}` replaced by its value. Raises KeyError for a slot without one."""
    return _SLOT.sub(lambda match: values[match.group(1)], template)


def tidy(text: str) -> str:
    """Collapse runs of spaces, and take the space before a mark away."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,.?!;:])", r"\1", text)
    return re.sub(r"([?!])[.?!]+", r"\1", text)


def sentence_case(template: str) -> str:
    """Capital letters at the start of each sentence; the tables are written in small letters."""
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), template)


def style(template: str, rng: random.Random) -> str:
    """The same words as people type them: mostly well, sometimes in small letters, unpunctuated or mistyped."""
    draw = rng.random()
    if draw < 0.80:
        return sentence_case(template)
    if draw < 0.88:
        return template
    if draw < 0.95:
        return re.sub(r"[.?!]$", "", rng.choice((template, sentence_case(template))))
    if draw < 0.99:
        return re.sub(r"[,?!]|[.:](?= |$)", "", template)
    return mistype(sentence_case(template), rng)


def mistype(template: str, rng: random.Random) -> str:
    """Swap, drop or double one letter inside one word of at least four; slots are left alone."""
    words = [match for match in re.finditer(r"(?<![{\w])[A-Za-z]{4,}(?![}\w])", template)]
    if not words:
        return template
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    pair = template[at : at + 2]
    mistake = rng.choice((pair[::-1], pair[0], pair[0] + pair))
    return template[:at] + mistake + template[at + 2 :]


def _collect(alternative: Alternative, found: set[str]) -> None:
    for node in alternative:
        if isinstance(node, str):
            found.update(re.findall(r"[a-z]+", _SLOT.sub(" ", node).lower()))
        elif isinstance(node, list):
            for inner in node:
                _collect(inner, found)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


def _parse(line: str) -> Alternative:
    """Recursive descent over one line; brackets hold alternatives split by bars."""
    stack: list[list[Alternative]] = [[[]]]
    position = 0
    for match in _TOKEN.finditer(line):
        if match.start() > position:
            stack[-1][-1].append(line[position : match.start()])
        position = match.end()
        mark = match.group(2)
        if match.group(1):
            stack[-1][-1].append(("table", match.group(1)))
        elif mark == "[":
            stack.append([[]])
        elif mark == "|" and len(stack) > 1:
            stack[-1].append([])
        elif mark == "]" and len(stack) > 1:
            choice = stack.pop()
            stack[-1][-1].append(choice)
        else:
            raise ValueError(f"phrase line: saw {mark!r} out of place in {line!r}, expected matching brackets")
    if len(stack) != 1:
        raise ValueError(f"phrase line: saw an open bracket in {line!r}, expected matching brackets")
    stack[0][0].append(line[position:])
    return stack[0][0]
