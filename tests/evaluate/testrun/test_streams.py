"""Server-sent events: split anywhere they give the same, and deltas become one reply."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openk2.evaluate.testrun.replies import ToolCall
from openk2.evaluate.testrun.streams import Collector, EventParser, StreamFault, error_text

STREAM = (
    "\ufeffdata: one\n\n: a comment\ndata:two\r\ndata: lines\r\n\r\nevent: x\nid: 3\nretry: 5\ndata: 三\r\rdata\n\n"
    "data:  kept space\n\ndata: unfinished"
)
EVENTS = ["one", "two\nlines", "三", " kept space", "unfinished"]


def parsed(chunks: list[bytes]) -> list[str]:
    parser = EventParser()
    found = [event for chunk in chunks for event in parser.feed(chunk)]
    return found + parser.end()


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=12))
def test_any_splitting_gives_the_same_events(cuts: list[int]) -> None:
    raw, edges = STREAM.encode(), [0, *sorted(cuts), len(STREAM.encode())]
    assert parsed([raw[a:b] for a, b in zip(edges, edges[1:], strict=False)]) == EVENTS
    assert parsed([raw[at : at + 1] for at in range(len(raw))]) == EVENTS


def collected(*deltas: dict[str, Any], **more: Any) -> Collector:
    collector = Collector()
    for at, delta in enumerate(deltas):
        collector.add(json.dumps({"choices": [{"index": 0, "delta": delta, **more}]}), float(at))
    return collector


def test_text_and_reasoning_are_put_together() -> None:
    collector = collected(
        {"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "a"}, {"content": None},
        {"content": "b", "reasoning": "!"},
    )  # fmt: skip
    reply = collector.reply(9.0)
    assert (reply.content, reply.reasoning, reply.first_token_s, reply.total_s) == ("ab", "hm!", 1.0, 9.0)
    assert not collector.finished and reply.prompt_tokens is None


def call(**fields: Any) -> dict[str, Any]:
    return {"tool_calls": [fields]}


def named(name: str, arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


BY_INDEX = [
    call(index=0, id="a", function=named("f", "")), call(index=0, function={"arguments": '{"x"'}),
    call(index=1, id="b", function=named("g", "{}")), call(index=0, function={"arguments": ":1}"}),
]  # fmt: skip
# Without an index, the name said again with every piece.
BY_ID = [
    call(id="a", function=named("f", '{"x"')), call(id="a", function=named("f", ":1}")),
    call(id="b", function=named("g", "{}")),
]  # fmt: skip
# All at once, arguments as an object.
WHOLE = [
    {"tool_calls": [
        {"index": 0, "id": "a", "function": named("f", '{"x":1}')}, {"index": 1, "id": "b", "function": named("g", {})},
    ]},
]  # fmt: skip


@pytest.mark.parametrize("deltas", [BY_INDEX, BY_ID, WHOLE])
def test_tool_calls_are_put_together_however_they_come(deltas: list[dict[str, Any]]) -> None:
    assert collected(*deltas).reply(1.0).tool_calls == (ToolCall("f", '{"x":1}', "a"), ToolCall("g", "{}", "b"))


def test_a_name_in_pieces() -> None:
    pieces = [call(index=0, id="a", function={"name": "get_"}), call(index=0, function={"name": "weather"})]
    assert collected(*pieces).reply(1.0).tool_calls[0].name == "get_weather"


def test_usage_finish_and_further_choices() -> None:
    collector = collected({"content": "x"}, finish_reason="stop")
    collector.add('{"choices": [{"index": 1, "delta": {"content": "other"}}]}', 1.0)
    collector.add('{"choices": [], "model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 1}}', 1.0)
    collector.add('{"choices": null, "usage": null}', 1.0)
    reply = collector.reply(2.0)
    assert (reply.content, reply.finish_reason, reply.model) == ("x", "stop", "m")
    assert (reply.prompt_tokens, reply.completion_tokens, collector.finished) == (3, 1, True)


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        ("{", "bad_stream", None),
        ("[1]", "bad_stream", None),
        ('{"error": {"message": "busy", "code": 503}}', "error_event", 503),
        ('{"error": "busy"}', "error_event", None),
        ('{"error": {"message": "x", "code": "%s"}}' % ("9" * 5000), "error_event", None),
        ('{"choices": 5}', "bad_stream", None),
        ('{"choices": [{"delta": "x"}]}', "bad_stream", None),
        ('{"choices": [{"delta": {"tool_calls": 5}}]}', "bad_stream", None),
        ('{"choices": [{"delta": {"tool_calls": [{"index": 0, "function": 5}]}}]}', "bad_stream", None),
    ],
)
def test_what_is_no_part_of_an_answer(data: str, kind: str, status: int | None) -> None:
    with pytest.raises(StreamFault) as raised:
        Collector().add(data, 0.0)
    assert (raised.value.fault.kind, raised.value.fault.status) == (kind, status)


def test_errors_in_many_shapes() -> None:
    assert error_text({"error": {"message": "a\n b", "code": "c", "type": "t"}}) == ("a b", "c")
    assert error_text({"error": {"message": "a", "type": "t"}}) == ("a", "t")
    assert error_text({"error": "a"}) == ("a", "")
    assert error_text({"detail": "a"}) == ("a", "")
    assert error_text("a") == ("a", "")
    assert len(error_text({"message": "x" * 10_000})[0]) == 500
