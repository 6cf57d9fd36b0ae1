"""Long text from a few numbers: a harbour log of any length, with sentences hidden in it.

Invariants: the same declaration gives the same text on every machine and
Python, so that a prompt keeps its hash; nothing in the log looks like a needle
unless the needle is written to look like the log. Tokens are estimated at four
for three English words: no tokenizer is asked, since targets have their own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openk2.evaluate.testrun import fields

PLACE = "{haystack}"
_KEYS = ("tokens_about", "seed", "needle", "depth")
_TOKENS_PER_WORD = 4 / 3

_BOATS = "Lapwing Kestrel Marlin Petrel Osprey Tern Heron Gannet Curlew Plover Dunlin Avocet".split()
_GOODS = ("salt", "rope", "timber", "barley", "lamp oil", "tar", "slate", "wool", "copper sheet", "dried peas")
_PEOPLE = "Ines Tomas Ravi Mei Olga Samuel Priya Jonas Leila Bruno Hanna Kofi".split()
_WEATHER = ("light rain", "thick fog", "a clear sky", "a stiff north wind", "snow showers", "a calm sea", "low cloud")
_SENTENCES = (
    "The {boat} came in with {count} crates of {goods} and left again before noon.",
    "{person} counted {count} sacks of {goods} on the east quay and signed for them.",
    "There was {weather} until the afternoon, so the {boat} stayed at its berth.",
    "{person} and {other} repaired the crane and tested it with {count} bales of {goods}.",
    "The clerk moved {count} barrels of {goods} from shed {shed} to the yard.",
    "{person} wrote that the tide gauge read {count} centimetres at dawn, with {weather}.",
    "Because of {weather} the pilot took the {boat} out an hour late, with {other} on board.",
    "A letter from the {boat} asked for {goods}; {person} answered it the same day.",
)


@dataclass(frozen=True, slots=True)
class Haystack:
    """`depths` says where each needle stands, from 0 (first) to 1 (last)."""

    tokens_about: int
    seed: int
    needles: tuple[str, ...]
    depths: tuple[float, ...]

    @classmethod
    def parse(cls, value: Any, where: str) -> Haystack:
        fields.an_object(value, where, _KEYS, ("tokens_about", "seed", "needle"))
        needles = fields.texts(value["needle"], f"{where}.needle")
        given = value.get("depth", [(at + 1) / (len(needles) + 1) for at in range(len(needles))])
        listed = given if isinstance(given, list) else [given]
        if len(listed) != len(needles):
            fields.refuse(f"{where}.depth", given, f"as many numbers as needles, {len(needles)}")
        return cls(
            fields.an_integer(value["tokens_about"], f"{where}.tokens_about", least=1),
            fields.an_integer(value["seed"], f"{where}.seed", least=0),
            needles,
            tuple(fields.a_number(depth, f"{where}.depth", least=0, most=1) for depth in listed),
        )

    def text(self) -> str:
        """The log, one entry a line, each needle a line of its own."""
        draw = random.Random(self.seed)
        lines: list[str] = []
        words, wanted = 0, self.tokens_about / _TOKENS_PER_WORD
        while words < wanted:
            lines.append(f"Day {len(lines) + 1}. {_entry(draw)}")
            words += len(lines[-1].split())
        # From the back, so that a needle does not move those before it.
        for depth, needle in sorted(zip(self.depths, self.needles, strict=True), reverse=True):
            lines.insert(round(depth * len(lines)), needle)
        return "\n".join(lines)


def _entry(draw: random.Random) -> str:
    """Two or three sentences. Only `random()` is drawn from: its sequence is promised for every Python version."""

    def pick(options: Sequence[str]) -> str:
        return options[int(draw.random() * len(options))]

    said = []
    for _ in range(2 + int(draw.random() * 2)):
        sentence = pick(_SENTENCES).format(
            boat=pick(_BOATS),
            person=pick(_PEOPLE),
            other=pick(_PEOPLE),
            goods=pick(_GOODS),
            weather=pick(_WEATHER),
            count=2 + int(draw.random() * 90),
            shed=1 + int(draw.random() * 9),
        )
        said.append(sentence)
    return " ".join(said)
