"""The phrase grammar: what is refused, what is kept, how much there is."""

from __future__ import annotations

import random

import pytest

from openk2.posttrain.synth.kinds import KINDS
from openk2.posttrain.synth.phrases import GRAMMAR
from openk2.posttrain.synth.phrasing import Grammar, fill, mistype, sentence_case, slots, style, tidy
from openk2.posttrain.synth.tasks import make_task, phrase


def test_expand_draws_every_alternative_and_nothing_else() -> None:
    grammar = Grammar({"a": "x [1|2|] <b>\nz", "b": "{slot}!"})
    rng = random.Random(0)
    assert {grammar.expand("a", rng) for _ in range(200)} == {"x 1 {slot}!", "x 2 {slot}!", "x {slot}!", "z"}


@pytest.mark.parametrize(
    ("text", "message"), [("see <nowhere>", "<nowhere>"), ("[open", "open bracket"), ("shut]", "out of place")]
)
def test_broken_tables_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grammar({"a": text})


def test_bind_redirects_the_core() -> None:
    assert Grammar({"frame": "ask <core>?", "x": "me"}).expand("frame", random.Random(0), {"core": "x"}) == "ask me?"


def test_tidy_and_case() -> None:
    assert sentence_case(tidy("hi .  what  is {a} , now ??")) == "Hi. What is {a}, now?"


def test_style_never_touches_a_slot() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        assert slots(style("please convert {value} {from_unit} to {word}, thanks.", rng)) == {
            "value",
            "from_unit",
            "word",
        }


def test_mistype_changes_one_word_by_one_letter() -> None:
    rng = random.Random(2)
    for _ in range(200):
        before, after = "please convert {value}".split(), mistype("please convert {value}", rng).split()
        assert sum(a != b for a, b in zip(before, after, strict=True)) <= 1
        assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(before, after, strict=True))


def test_fill_refuses_a_slot_without_a_value() -> None:
    with pytest.raises(KeyError):
        fill("{a} and {b}", {"a": "1"})


@pytest.mark.parametrize("kind", ["add", "mul", "after", "between", "weekday", "convert", "set", "get", "cell", "show"])
def test_each_main_kind_has_thousands_of_phrasings(kind: str) -> None:
    rng = random.Random(3)
    drawn = {phrase(kind, (), rng) for _ in range(2500)}
    assert len(drawn) > 1500


def test_every_kind_is_phrased() -> None:
    seen = {template for index in range(3000) for template in make_task(11, index).templates}
    assert len(seen) > 3000
    assert sum(len(makers) for makers in KINDS.values()) >= 25
    assert all(f"frame.{form}" in GRAMMAR for form in ("q", "imp", "emb", "np", "full", "again"))
