"""Anthropic's API through its official client, against a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_server import CODEC, Running, running
from scripted_engine import CALCULATOR as SPEC
from scripted_engine import QUESTION, ScriptedEngine, calling, spelt

from openk2.serve.anthropic_requests import read_id, shown_id

DECLARED = SPEC["function"]
CALCULATOR = {
    "name": DECLARED["name"],
    "description": DECLARED["description"],
    "input_schema": DECLARED["parameters"],
}
ENGINE = ScriptedEngine(CODEC)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ENGINE) as found:
        yield found


@pytest.fixture()
def client(server: Running) -> Iterator[anthropic.Anthropic]:
    ENGINE.forget()
    with server.anthropic() as found:
        yield found


def ask(client: anthropic.Anthropic, **options: Any) -> Any:
    return client.messages.create(**{"model": "openk2", "max_tokens": 200, "messages": [QUESTION], **options})


def test_an_answer_and_its_usage(client: anthropic.Anthropic) -> None:
    ENGINE.say("It is 42, 世界.")
    system = [{"type": "text", "text": "You are "}, {"type": "text", "text": "short."}]
    answer = ask(client, system=system, extra_body={"top_k": 4})
    assert [(block.type, block.text) for block in answer.content] == [("text", "It is 42, 世界.")]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    [request] = ENGINE.requests
    messages = [{"role": "system", "content": "You are short."}, QUESTION]
    assert request.prompt == CODEC.encode(messages, add_generation_prompt=True).ids
    assert request.params.top_k == 4
    usage = answer.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len(request.prompt)
    assert usage.cache_read_input_tokens == len(request.prompt) // 2
    assert usage.output_tokens == len(spelt(CODEC, "It is 42, 世界."))


@pytest.mark.parametrize(("asked", "real"), [({}, 0.6), ({"temperature": 1.0}, 0.6), ({"temperature": 0.5}, 0.3)])
def test_the_temperature_is_scaled_as_k2_wants(client: anthropic.Anthropic, asked: Any, real: float) -> None:
    ask(client, max_tokens=1, extra_body=asked)
    assert ENGINE.requests[0].params.temperature == pytest.approx(real)


@pytest.mark.parametrize(
    "message",
    [
        "It is 42, 世界.",
        calling(("calculator", '{"expression": "6*7"}'), ("calculator", '{"expression": "1"}'), content="Let me see."),
        calling(("now", "{}")),
    ],
)
def test_a_stream_adds_up_to_the_whole_message(client: anthropic.Anthropic, message: Any) -> None:
    ENGINE.say(message, message)
    whole = ask(client, tools=[CALCULATOR])
    with client.messages.stream(
        model="openk2", max_tokens=200, messages=[QUESTION], tools=[CALCULATOR]
    ) as stream:  # fmt: skip
        names = [event.type for event in stream if event.type in RAW]
        streamed = stream.get_final_message()
    kept = {"content", "stop_reason", "stop_sequence", "usage"}
    assert streamed.model_dump(include=kept) == whole.model_dump(include=kept)
    assert names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"]
    assert names.count("content_block_start") == names.count("content_block_stop") == len(whole.content)


RAW = {"message_start", "message_delta", "message_stop", "content_block_start", "content_block_stop"}


def test_events_are_named_as_their_type_says(server: Running, client: anthropic.Anthropic) -> None:
    ENGINE.say("It is.")
    body = {"model": "openk2", "max_tokens": 50, "messages": [QUESTION], "stream": True}
    lines = server.post("/v1/messages", body).text.splitlines()
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names[:3] == ["message_start", "ping", "content_block_start"] and names[-1] == "message_stop"
    for name, data in zip(names, (line for line in lines if line.startswith("data: ")), strict=True):
        assert f'"type":"{name}"' in data


def test_three_turns_with_tools(client: anthropic.Anthropic) -> None:
    ENGINE.say(calling(("calculator", '{"expression": "6*7"}')), "It is 42.")
    ENGINE.say(calling(("calculator", '{"expression": "42+1"}')), first_call_index=1)
    messages: list[Any] = [QUESTION]
    for called in ("6*7", None, "42+1"):
        answer = ask(client, messages=messages, tools=[CALCULATOR])
        assert answer.stop_reason == ("tool_use" if called else "end_turn")
        messages.append({"role": "assistant", "content": answer.content})
        if called:
            [use] = answer.content
            assert use.input == {"expression": called} and re.fullmatch(r"[a-zA-Z0-9_-]+", use.id)
            result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "42"}]}
            messages.append({"role": "user", "content": [result]})
        else:
            messages.append({"role": "user", "content": "And one more?"})
    history = [
        QUESTION,
        calling(("calculator", '{"expression": "6*7"}')),
        {"role": "tool", "tool_call_id": "0", "content": "42"},
        {"role": "assistant", "content": "It is 42."},
        {"role": "user", "content": "And one more?"},
    ]
    assert ENGINE.requests[2].prompt == CODEC.encode(history, [SPEC], add_generation_prompt=True).ids
    assert ENGINE.requests[2].grammar.first_call_index == 1


def test_results_and_text_of_one_message_keep_their_order(client: anthropic.Anthropic) -> None:
    uses = [
        {"type": "tool_use", "id": f"x{at}", "name": "calculator", "input": {"expression": str(at)}} for at in (0, 1)
    ]
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    results = [{"type": "tool_result", "tool_use_id": f"x{at}", "content": str(at)} for at in (1, 0)]
    messages = [
        QUESTION,
        {"role": "assistant", "content": [thought, {"type": "text", "text": "See."}, *uses]},
        {"role": "user", "content": [*results, {"type": "text", "text": "Go on."}]},
    ]
    ask(client, messages=messages, tools=[CALCULATOR], max_tokens=9)
    called = calling(
        ("calculator", '{"expression": "0"}'), ("calculator", '{"expression": "1"}'), content="See."
    )  # fmt: skip
    history = [
        QUESTION,
        called,
        {"role": "tool", "tool_call_id": "1", "content": "1"},
        {"role": "tool", "tool_call_id": "0", "content": "0"},
        {"role": "user", "content": "Go on."},
    ]
    assert ENGINE.requests[0].prompt == CODEC.encode(history, [SPEC], add_generation_prompt=True).ids


@pytest.mark.parametrize(
    ("choice", "must_call", "parallel"),
    [
        ({"type": "auto"}, False, True),
        ({"type": "any", "disable_parallel_tool_use": True}, True, False),
        ({"type": "tool", "name": "calculator"}, True, False),
        ({"type": "none"}, False, True),
    ],
)
def test_tool_choice(client: anthropic.Anthropic, choice: Any, must_call: bool, parallel: bool) -> None:
    answer = ask(client, tools=[CALCULATOR], tool_choice=choice, max_tokens=60)
    grammar = ENGINE.requests[0].grammar
    assert (grammar.must_call, grammar.parallel) == (must_call, parallel)
    assert bool(grammar.tools) == (choice["type"] != "none")
    if must_call:
        assert answer.stop_reason == "tool_use" and answer.content[-1].name == "calculator"


def test_stop_sequences_and_length(client: anthropic.Anthropic) -> None:
    ENGINE.say("It is 42. And so on.", "It is 42.")
    stopped = ask(client, stop_sequences=["zz", "42. A"])
    assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == (
        "It is ",
        "stop_sequence",
        "42. A",
    )
    assert ask(client, max_tokens=2).stop_reason == "max_tokens"


def test_counting_tokens(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="openk2", messages=[QUESTION], tools=[CALCULATOR], system="Short.")
    messages = [{"role": "system", "content": "Short."}, QUESTION]
    assert counted.input_tokens == len(CODEC.encode(messages, [SPEC], add_generation_prompt=True).ids)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type: saw \"enabled\""),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 'content[0].type: saw "image"'),
        ({"messages": [QUESTION, {"role": "assistant", "content": "It"}]}, "begun answers are not supported"),
        ({"temperature": 1.5}, "temperature: saw 1.5"),
        ({"mcp_servers": []}, "mcp_servers: saw a field"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "tool_call_id"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_in_anthropics_shape(server: Running, change: Any, words: str) -> None:
    answer = server.post("/v1/messages", {"model": "openk2", "max_tokens": 5, "messages": [QUESTION], **change})
    assert answer.status_code == 400
    assert answer.json()["type"] == "error" and answer.json()["error"]["type"] == "invalid_request_error"
    assert words in answer.json()["error"]["message"]


def test_the_clients_errors_are_the_official_ones(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="claude"):
        ask(client, model="claude")


@given(st.text(max_size=30))
def test_call_ids_are_shown_in_anthropics_alphabet_and_read_back(name: str) -> None:
    call_id = f"functions.{name}:7".encode("utf-8", "replace").decode()
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", shown_id(call_id)) and read_id(shown_id(call_id)) == call_id


@pytest.mark.parametrize("foreign", ["call_abc", "toolu_", "toolu_01A!", "toolu_01AbCdEfGh"])
def test_foreign_ids_are_left_alone_or_at_least_read(foreign: str) -> None:
    assert isinstance(read_id(foreign), str)
