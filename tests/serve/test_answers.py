"""What is shown of sampled tokens: stop strings, characters split over tokens, log-probabilities, calls."""

from __future__ import annotations

from collections import abc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import calling, spelt
from small_checkpoint import small_codec

from openk2.engine.sequence import Request, Sequence
from openk2.protocols import SamplingParams
from openk2.serve.answers import Answer, ChatAnswer, Piece, TextAnswer, TextGate, Token

CODEC = small_codec()


def said(answer: Answer, ids: abc.Sequence[int]) -> list[Piece]:
    """The pieces of an answer whose sequence is `ids`, which ends where a stop string is complete."""
    sequence = Sequence(Request((1, 2), SamplingParams()), len(ids), None, None, tokens=[1, 2])  # type: ignore[arg-type]
    pieces = []
    for token in ids:
        sequence.tokens.append(token)
        sequence.log_probs.append(-float(sequence.num_sampled))
        pieces.append(answer.take(sequence))
        if answer.stop_string is not None:
            break
    return [*pieces, answer.close()]


def text(pieces: abc.Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def passed(gate: TextGate, parts: abc.Sequence[str]) -> str:
    return "".join(gate.add(part, None)[0] for part in parts) + gate.close()[0]


@given(st.lists(st.text("ab<", max_size=4), max_size=8), st.lists(st.text("ab<", min_size=1, max_size=4), max_size=4))
def test_the_split_of_a_text_does_not_change_where_it_stops(parts: list[str], stops: list[str]) -> None:
    whole = "".join(parts)
    gate, by_character = TextGate(stops), TextGate(stops)
    shown = passed(gate, parts)
    assert shown == passed(by_character, list(whole)) and gate.found == by_character.found
    if gate.found is None:
        assert shown == whole and not any(stop in whole for stop in stops)
    else:
        assert whole.startswith(shown + gate.found) and not any(stop in shown for stop in stops)


@given(st.lists(st.text("ab<", max_size=4), max_size=8), st.lists(st.text("ab<", min_size=1, max_size=4), max_size=4))
def test_nothing_is_withheld_that_begins_no_stop_string(parts: list[str], stops: list[str]) -> None:
    gate, whole, shown = TextGate(stops), "", ""
    for part in parts:
        whole += part
        shown += gate.add(part, None)[0]
        if gate.found is not None:
            return
        assert any(stop.startswith(whole[len(shown) :]) for stop in stops) or shown == whole


def test_a_stop_string_over_many_tokens_is_never_shown() -> None:
    answer = ChatAnswer(CODEC, ["END.", "never"])
    pieces = said(answer, spelt(CODEC, "It is 42. END. More."))
    assert text(pieces) == "It is 42. " and answer.stop_string == "END." and answer.reason("stop") == "stop"


def test_what_only_began_a_stop_string_is_shown_at_the_end() -> None:
    answer = ChatAnswer(CODEC, ["END."])
    assert text(said(answer, spelt(CODEC, "The END"))) == "The END" and answer.stop_string is None


def test_calls_come_in_parts_after_the_text_that_was_withheld() -> None:
    answer = ChatAnswer(CODEC, ["END.", "expression"])  # stop strings are not looked for in arguments
    pieces = said(answer, spelt(CODEC, calling(("calculator", '{"expression": "6*7"}'), content="So, EN")))
    calls = [call for piece in pieces for call in piece.calls]
    first = next(at for at, piece in enumerate(pieces) if piece.calls)
    assert text(pieces[: first + 1]) == "So, EN" == text(pieces)
    assert calls[0]["id"] == "functions.calculator:0" and calls[0]["function"]["name"] == "calculator"
    assert "".join(call["function"]["arguments"] for call in calls) == '{"expression": "6*7"}'
    assert answer.reason("stop") == "tool_calls" and answer.reason("length") == "length"


def test_a_character_cut_off_is_replaced_and_one_in_two_tokens_is_not() -> None:
    ids = CODEC.tokenizer.encode("é")
    assert len(ids) == 2
    assert text(said(ChatAnswer(CODEC), ids)) == "é"
    assert text(said(ChatAnswer(CODEC), ids[:1])) == "�"
    assert text(said(TextAnswer(CODEC), ids[:1])) == "�"


def test_log_probabilities_are_told_of_the_tokens_that_are_shown() -> None:
    ids = spelt(CODEC, "é is. X")
    pieces = said(ChatAnswer(CODEC, [". X"]), ids)
    told = [token for piece in pieces for token in piece.shown]
    assert [token.id for token in told] == list(CODEC.tokenizer.encode("é is"))
    assert [token.log_prob for token in told] == [-1.0 - at for at in range(len(told))]
    assert [token.begin for token in told][:2] == [0, 0]


def test_of_a_token_that_a_stop_string_cuts_the_log_probability_is_told() -> None:
    gate = TextGate(["lo"])
    token = Token(7, -0.5)
    assert gate.add("hello", token) == ("hel", (token,))


def test_plain_text_hides_control_tokens_but_tells_them_where_asked() -> None:
    stop = CODEC.tokenizer.im_end_id
    ids = [*CODEC.tokenizer.encode("is"), CODEC.tokenizer.special["<|im_user|>"], stop]
    pieces = said(TextAnswer(CODEC, tell_tokens=True), ids)
    assert text(pieces) == "is"
    assert [token.id for piece in pieces for token in piece.sampled] == ids
    assert [token.id for piece in pieces for token in piece.shown] == ids[:-2]
    assert not any(piece.sampled for piece in said(TextAnswer(CODEC), ids))


@pytest.mark.parametrize("stops", [("b", "abc"), ("abc", "b")])
def test_the_stop_string_counts_that_is_complete_first(stops: tuple[str, ...]) -> None:
    gate = TextGate(stops)
    assert gate.add("xabc", None)[0] == "xa" and gate.found == "b"
