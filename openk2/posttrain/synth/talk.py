"""Turns that need no tool: small talk beside the tools, and plain dialogues by themselves.

`reply` is what the teacher says (and the judge expects of it), `answer` the
part of it that any model's reply must state, "" if any words will do. Left out:
anything that a tool on offer could answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from openk2.posttrain.synth import names
from openk2.posttrain.synth.split import Draw


@dataclass(frozen=True)
class Talk:
    """One such turn: the phrase table of what is said, its values, and the answer."""

    table: str
    reply: str
    answer: str
    slots: Mapping[str, str] = field(default_factory=dict)


def small_talk(draw: Draw, tools: Sequence[str], *, later: bool = False) -> Talk:
    """A turn without a call in a dialogue that has tools; `later` ones may be thanks."""
    weights = _LATER_WEIGHTS if later else _FIRST_WEIGHTS
    kind = draw.rng.choices(list(weights), list(weights.values()))[0]
    return _with_tools(tools) if kind == "tools" else plain_turn(draw, kind)


def plain_turn(draw: Draw, kind: str) -> Talk:
    """A turn of `kind`, with its values drawn."""
    if kind in _FIXED:
        reply, answer = _FIXED[kind]
        slots = {"name": draw.name(names.PERSONS), "city": draw.name(names.CITIES), "word": draw.name(names.WORDS)}
        return Talk(f"{kind}.full", reply, answer, slots)
    return _MAKERS[kind](draw)


def _with_tools(tools: Sequence[str]) -> Talk:
    listed = ", ".join(tools[:-1]) + " and " + tools[-1] if len(tools) > 1 else tools[0]
    return Talk("tools.full", f"I can use {listed}.", listed)


def _spell(draw: Draw) -> Talk:
    word = draw.name(names.WORDS)
    letters = "-".join(word.upper())
    return Talk("spell.full", f"{letters}.", letters, {"word": word})


def _first(draw: Draw) -> Talk:
    word = draw.name(names.WORDS)
    return Talk("first.full", f"The first letter is {word[0].upper()}.", word[0].upper(), {"word": word})


def _opposite(draw: Draw) -> Talk:
    pair = draw.rng.choice(names.OPPOSITES).split(":")
    draw.rng.shuffle(pair)
    return Talk("opposite.full", f"The opposite of {pair[0]} is {pair[1]}.", pair[1], {"word": pair[0]})


def _fact(draw: Draw) -> Talk:
    question, _, reply = draw.rng.choice(names.FACTS.strip().splitlines()).strip().partition(" | ")
    return Talk("fact.full", reply, reply.rstrip("."), {"question": question})


def _repeat(draw: Draw) -> Talk:
    word = draw.name(draw.rng.choice((names.WORDS, names.PERSONS, names.CITIES, names.ITEMS)))
    return Talk("repeat.full", f"{word}.", word, {"word": word})


def _name(draw: Draw) -> Talk:
    name = draw.name(names.PERSONS)
    return Talk("name.full", f"Nice to meet you, {name}.", name, {"name": name})


# Kind -> the whole reply, and the part of it that any other model's reply must state too.
_FIXED = {
    "greet": ("Hello! How can I help you?", ""),
    "who": ("I am openk2, a small model.", "openk2"),
    "thank": ("You are welcome.", ""),
    "bye": ("Goodbye!", ""),
    "feel": ("I am well, thank you.", ""),
    "ready": ("Yes, how can I help you?", ""),
    "missing": ("Sorry, I cannot do that.", "cannot"),
}
_MAKERS = {"spell": _spell, "first": _first, "opposite": _opposite, "fact": _fact, "repeat": _repeat, "name": _name}
# Kinds of turns beside tools, at the start of a dialogue and after an answer.
_FIRST_WEIGHTS = {"greet": 2.0, "who": 1.0, "tools": 2.0, "missing": 2.0}
_LATER_WEIGHTS = {"thank": 4.0, "bye": 1.0, "who": 1.0, "tools": 1.0}
# Kinds of plain dialogue turns, with how often each is drawn.
PLAIN_WEIGHTS = {
    "greet": 2.0,
    "who": 2.0,
    "thank": 1.0,
    "bye": 0.7,
    "feel": 1.0,
    "ready": 0.7,
    "spell": 2.0,
    "first": 1.0,
    "opposite": 1.5,
    "fact": 5.0,
    "repeat": 1.0,
    "name": 1.5,
}
