"""Parsing what models write: any split is the whole, nothing leaks, nothing raises, nothing is capped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from chat_dialogues import SPECIAL_NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import merged, stream

from openk2.chat import Codec, StreamParser, Tokenizer

SECTION = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
ONE = "<|tool_call_begin|>{}<|tool_call_argument_begin|>{}<|tool_call_end|>"
WEATHER = ONE.format("functions.get_weather:0", '{"city": "Oslo"}')
MARKERS = [name for name in SPECIAL_NAMES if "tool_call" in name]


def ids_of(codec: Codec, text: str) -> list[int]:
    """Ids of a model's output written as text, control tokens spelt out."""
    return codec.tokenizer.encode(text, allow_special=True)


def parse(codec: Codec, text: str) -> dict[str, Any]:
    return codec.decode_message(ids_of(codec, text))


def to_ids(codec: Codec, parts: Sequence[str | int]) -> list[int]:
    return [row for part in parts for row in ([part] if isinstance(part, int) else ids_of(codec, part))]


# Model outputs: any ids at all, with markers frequent enough to reach every state of the parser.
TEXT_PARTS = ["functions.", "get_weather", ":0", "call00003", '{"a": ', "1}", "🙂", " ", "\n", "<|im", "é"]
OUTPUTS = st.lists(st.one_of(st.sampled_from(MARKERS * 2 + TEXT_PARTS * 2 + SPECIAL_NAMES), st.integers(0, 1023)))
CUTS = st.lists(st.integers(0, 60), max_size=8)


@given(OUTPUTS, CUTS)
@settings(max_examples=400)
def test_any_split_is_the_whole(codec: Codec, parts: list[str | int], cuts: list[int]) -> None:
    ids = to_ids(codec, parts)
    whole = codec.decode_message(ids)
    deltas, message = stream(codec, ids, cuts)
    assert message == whole
    assert merged(deltas) == {key: value for key, value in whole.items() if key != "malformed"}


@given(st.lists(st.one_of(st.integers(0, 255), st.sampled_from([40, 50, 60])), max_size=6), CUTS)
def test_control_tokens_never_show(codec: Codec, offsets: list[int], cuts: list[int]) -> None:
    """Every control token, in every order, between plain words: none of their names comes out."""
    word = codec.tokenizer.encode("plain")
    ids = [row for at in offsets for row in (codec.tokenizer.bos_id + at, *word)]
    deltas, message = stream(codec, ids, cuts)
    shown = str(deltas) + message["content"] + str(message.get("tool_calls"))
    assert "<|" not in shown and "[EOS]" not in shown


@given(st.text(alphabet="aé中🙂\n", max_size=30))
def test_no_character_is_shown_in_part(codec: Codec, text: str) -> None:
    ids = codec.tokenizer.encode(text)
    parser = StreamParser(codec)
    deltas = [delta["content"] for row in ids for delta in parser.feed([row])]
    assert "".join(deltas) == text
    assert "\ufffd" not in "".join(deltas)


def test_cut_characters_end_as_replacement(codec: Codec) -> None:
    ids = codec.tokenizer.encode("🙂")
    assert len(ids) > 1
    assert codec.decode_message(ids[:-1])["content"] == "\ufffd"
    deltas, message = stream(codec, [*ids[:-1], codec.tokenizer.im_end_id], [])
    assert merged(deltas) == message == {"role": "assistant", "content": "\ufffd"}


def test_a_cut_character_does_not_reach_over_a_marker(codec: Codec) -> None:
    half = codec.tokenizer.encode("🙂")[:-1]
    section = ids_of(codec, SECTION.format(ONE.format("functions.f:0", "{}")))
    message = codec.decode_message([*half, *section])
    assert message["content"] == "\ufffd"
    assert message["tool_calls"][0]["id"] == "functions.f:0"
    assert message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_a_call(codec: Codec) -> None:
    text = "I look.\n" + SECTION.format(WEATHER + ONE.format("functions.fs.read-file:1", "{}")) + "<|im_end|>"
    assert parse(codec, text) == {
        "role": "assistant",
        "content": "I look.\n",
        "tool_calls": [
            {
                "id": "functions.get_weather:0",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
            },
            {
                "id": "functions.fs.read-file:1",
                "type": "function",
                "function": {"name": "fs.read-file", "arguments": "{}"},
            },
        ],
    }


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("functions_get_weather_1", "get_weather"),
        ("functionsexec5", "exec"),
        ("call00003", ""),
        ("0", ""),
        ("call_abc", ""),
        ("get_weather:0", "get_weather"),
        ("functions.get_weather:007", "get_weather"),
        ("functions.get_weather", "get_weather"),
        ("", ""),
    ],
)
def test_other_call_ids_are_read_and_reported(codec: Codec, spelling: str, name: str) -> None:
    """One case a spelling seen in the wild: the tool is found where the id names it, and the fault is told."""
    message = parse(codec, SECTION.format(ONE.format(spelling, "{}")) + "<|im_end|>")
    assert message["tool_calls"] == [
        {"id": spelling, "type": "function", "function": {"name": name, "arguments": "{}"}}
    ]
    assert message["malformed"] == f"call id {spelling!r} is not functions.NAME:INDEX"


def test_an_endless_index_is_no_index(codec: Codec) -> None:
    message = parse(codec, SECTION.format(ONE.format("functions.f:" + "1" * 10_000, "{}")))
    assert message["tool_calls"][0]["function"]["name"] == "f"
    assert "is not functions.NAME:INDEX" in message["malformed"]
    assert len(message["malformed"]) < 200


def test_line_breaks_around_an_id_are_not_part_of_it(codec: Codec) -> None:
    message = parse(codec, SECTION.format("\n" + ONE.format("\nfunctions.f:0\n", "{}") + "\n"))
    assert message["tool_calls"][0]["id"] == "functions.f:0"
    assert "malformed" not in message


def test_bad_json_stays_a_string(codec: Codec) -> None:
    message = parse(codec, SECTION.format(ONE.format("functions.f:0", '{"a": ')) + "<|im_end|>")
    assert message["tool_calls"][0]["function"]["arguments"] == '{"a": '
    assert "malformed" not in message


@pytest.mark.parametrize(
    ("text", "fault", "calls", "content"),
    [
        ("Hm<|tool_calls_section_begin|>", "the turn ends inside the tool-call section", 0, "Hm"),
        (SECTION.format("")[:28] + WEATHER + "<|im_end|>", "the turn ends inside the tool-call section", 1, ""),
        (SECTION.format(WEATHER[:-19]), "a tool call without its end", 1, ""),
        (SECTION.format("<|tool_call_begin|>functions.f:0<|tool_call_end|>"), "a tool call without arguments", 1, ""),
        (SECTION.format(WEATHER[:-17] + WEATHER), "a tool call without its end", 2, ""),
        (SECTION.format(""), "a tool-call section without a call", 0, ""),
        (SECTION.format(WEATHER + "and"), "text between tool calls", 1, ""),
        (SECTION.format(WEATHER) + " done", "text after the tool-call section", 1, " done"),
        (SECTION.format(WEATHER) * 2, "a second tool-call section", 2, ""),
        (WEATHER, "a tool call outside the tool-call section", 1, ""),
        ("a<|tool_call_end|>b", "<|tool_call_end|> out of place", 0, "ab"),
        ("a<|im_user|>b", "<|im_user|> out of place", 0, "ab"),
        ("a<|reserved_token_773|>b", "<|reserved_token_773|> out of place", 0, "ab"),
    ],
)
def test_faults_are_told(codec: Codec, text: str, fault: str, calls: int, content: str) -> None:
    message = parse(codec, text)
    assert fault in message["malformed"].split("; ")
    assert len(message.get("tool_calls", [])) == calls
    assert message["content"] == content


def test_unused_rows_do_not_show() -> None:
    codec = Codec(Tokenizer.train(["aa aa"], 600))
    message = codec.decode_message([*codec.tokenizer.encode("a"), 340, *codec.tokenizer.encode("b")])
    assert message == {"role": "assistant", "content": "ab", "malformed": "unused token 340 out of place"}


@pytest.mark.parametrize("stop", ["<|im_end|>", "[EOS]"])
def test_nothing_after_the_end_of_turn_counts(codec: Codec, stop: str) -> None:
    assert parse(codec, f"hi{stop}more<|tool_call_begin|>") == {"role": "assistant", "content": "hi"}


def test_text_that_spells_a_marker_is_text(codec: Codec) -> None:
    """Only ids are markers: an answer about the template may quote it."""
    quoted = "".join(SPECIAL_NAMES)
    assert codec.decode_message(codec.tokenizer.encode(quoted)) == {"role": "assistant", "content": quoted}


def test_no_size_caps(codec: Codec) -> None:
    arguments = '{"text": "' + "line\\n" * 30_000 + '"}'
    message = parse(codec, "x" * 50_000 + SECTION.format(ONE.format("functions.f:0", arguments)))
    assert message["tool_calls"][0]["function"]["arguments"] == arguments
    assert len(message["content"]) == 50_000


def test_leading_text_is_not_lost_when_all_comes_at_once(codec: Codec) -> None:
    ids = ids_of(codec, "First. " + SECTION.format(WEATHER) + "<|im_end|>")
    deltas = StreamParser(codec).feed(ids)
    assert merged(deltas) == codec.decode_message(ids)
    assert deltas[0]["content"].startswith("F")
