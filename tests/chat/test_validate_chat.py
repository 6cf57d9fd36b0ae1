"""A user's chat JSONL: good lines pass unchanged, each kind of bad line is named precisely."""

from __future__ import annotations

import copy
import json
import socket
from typing import Any

import pytest
from chat_dialogues import call, declaration, dialogues
from hypothesis import given, settings

from openk2.chat import Codec, validate_chat

CITY = {"type": "string", "minLength": 2}
GOOD: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather in Oslo?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call("weather", '{"city": "Oslo"}', "call_1")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
    ],
    "tools": [declaration("weather", city=CITY)],
    "source": "by hand",
}


def test_good_lines_pass_unchanged(codec: Codec) -> None:
    before = copy.deepcopy(GOOD)
    messages, tools = validate_chat(GOOD, 1)
    assert (messages, tools) == (GOOD["messages"], GOOD["tools"])
    assert before == GOOD
    assert any(codec.encode(messages, tools).mask)
    assert validate_chat({"messages": GOOD["messages"][-1:], "tools": None}, 1) == (GOOD["messages"][-1:], [])


def test_calls_may_close_the_dialogue() -> None:
    messages = GOOD["messages"][:3]
    assert validate_chat({**GOOD, "messages": messages}, 1)[0] == messages


def edited(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one place changed; `path` as the complaint writes it, value `...` removes."""
    line = copy.deepcopy(GOOD)
    *parents, last = path.replace("[", ".[").split(".")
    place: Any = line
    for key in parents:
        place = place[int(key[1:-1])] if key.startswith("[") else place[key]
    at: Any = int(last[1:-1]) if last.startswith("[") else last
    if value is ...:
        del place[at]
    else:
        place[at] = value
    return line


ARGUMENTS = "messages[2].tool_calls[0].function.arguments"
SCHEMA = "tools[0].function.parameters"


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("messages", ..., "messages: saw nothing, expected a list"),
        ("messages", [], "messages: saw [], expected a list with at least one message"),
        ("messages[1]", "hi", 'messages[1]: saw "hi", expected an object'),
        ("messages[1].role", ..., "messages[1].role: saw nothing, expected one of assistant, system, tool, user"),
        ("messages[0].role", "developer", 'messages[0].role: saw "developer", expected one of'),
        ("messages[1].role", "system", 'messages[1].role: saw "system", expected a system message only at the start'),
        ("messages[1].role", "assistant", 'messages[2].role: saw "assistant", expected a user or tool message'),
        ("messages[1].content", ..., "messages[1].content: saw nothing, expected text; add the text"),
        ("messages[1].content", 3, "messages[1].content: saw 3, expected a string or a list of text parts"),
        ("messages[1].content[0]", {"type": "image_url"}, "messages[1].content[0]: saw {"),
        ("messages[4].content", "", 'messages[4].content: saw "", expected text or tool_calls'),
        ("messages[3].content", None, "messages[3].content: saw nothing, expected text"),
        ("messages[4].train", "no", 'messages[4].train: saw "no", expected true or false'),
        ("messages[4].weight", 0.5, "messages[4].weight: saw 0.5, expected 0 or 1"),
        ("messages[4].name", 7, "messages[4].name: saw 7, expected a string"),
        ("messages[4].function_call", {"name": "x"}, "messages[4].function_call: saw {"),
        ("messages[1].tool_calls", [{}], "messages[1].tool_calls: saw [{}], expected calls in assistant messages only"),
        ("messages[2].tool_calls", {}, "messages[2].content: saw nothing, expected text"),
        ("messages[2].tool_calls", {"a": 1}, 'messages[2].tool_calls: saw {"a": 1}, expected a list of calls'),
        ("messages[2].tool_calls[0]", "weather", 'messages[2].tool_calls[0]: saw "weather", expected {"id"'),
        ("messages[2].tool_calls[0].id", ..., "messages[2].tool_calls[0].id: saw nothing, expected a string"),
        ("messages[2].tool_calls[0].function.name", "", 'function.name: saw "", expected a tool name'),
        ("messages[2].tool_calls[0].function.name", "wether", 'saw "wether", expected a declared tool (weather)'),
        ("tools", ..., 'function.name: saw "weather", expected a declared tool (none)'),
        (ARGUMENTS, ..., ARGUMENTS + ": saw nothing, expected a JSON object"),
        (ARGUMENTS, "{city}", ARGUMENTS + ': saw "{city}", expected JSON (Expecting property name'),
        (ARGUMENTS, "[1]", ARGUMENTS + ': saw "[1]", expected a JSON object'),
        (ARGUMENTS, "[" * 100_000, ARGUMENTS + ': saw "[[['),
        (ARGUMENTS, {"city": 3}, ARGUMENTS + "['city']: saw 3, expected what weather declares (3 is not of type"),
        (ARGUMENTS, "{}", ARGUMENTS + ": saw {}, expected what weather declares ('city' is a required property)"),
        ("messages[3].tool_call_id", ..., 'saw nothing, expected the id of a call not answered yet ("call_1")'),
        ("messages[3].tool_call_id", "call_2", 'messages[3].tool_call_id: saw "call_2", expected the id of a call'),
        ("messages[3].name", "clock", 'messages[3].name: saw "clock", expected the called tool, weather'),
        ("messages[3]", ..., 'messages[3].role: saw "assistant", expected a tool result for "call_1" first'),
        (
            "messages[2]",
            ...,
            'messages[2].tool_call_id: saw "call_1", expected the id of a call not answered yet (none)',
        ),
        ("tools", {}, "tools: saw {}, expected a list of tool declarations"),
        ("tools[0]", {"name": "weather"}, 'tools[0]: saw {"name": "weather"}, expected {"type": "function"'),
        ("tools[0].function", None, "tools[0].function: saw nothing, expected an object"),
        ("tools[0].function.name", ..., "tools[0].function.name: saw nothing, expected a tool name"),
        (SCHEMA, [], SCHEMA + ": saw [], expected a JSON schema object"),
        (SCHEMA, {"type": "objekt"}, SCHEMA + "['type']: saw \"objekt\", expected a JSON schema"),
        (SCHEMA, {"$ref": "http://localhost/x.json"}, "the parameters declared for weather: saw"),
        (SCHEMA, {"$ref": "#"}, 'the parameters declared for weather: saw "RecursionError'),
        (SCHEMA, {"pattern": "("}, SCHEMA + "['pattern']: saw \"(\", expected a JSON schema ('(' is not a 'regex')"),
        (SCHEMA, {"patternProperties": {"(": {}}}, SCHEMA + "['patternProperties']: saw \"(\", expected a JSON schema"),
        (ARGUMENTS, {"city": ["x" * 5000]}, ARGUMENTS + "['city']: saw [\"xxx"),
    ],
)
def test_bad_lines_are_named(path: str, value: Any, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: opened.append(address))
    with pytest.raises(ValueError) as error:
        validate_chat(edited(path, value), 7)
    text = str(error.value)
    assert text.startswith("line 7: ")
    assert complaint in text
    assert "; " in text and "\n" not in text
    assert len(text) < 400
    assert not opened, "a schema was fetched over the network"


def test_the_line_itself_must_be_an_object() -> None:
    with pytest.raises(ValueError, match=r"line 3: the line: saw \[1\], expected an object"):
        validate_chat([1], 3)


def test_a_tool_is_declared_once() -> None:
    with pytest.raises(ValueError, match=r"tools\[1\]\.function\.name: saw \"weather\", expected a name not declared"):
        validate_chat({**GOOD, "tools": GOOD["tools"] * 2}, 1)


def test_ids_of_open_calls_differ() -> None:
    line = copy.deepcopy(GOOD)
    line["messages"][2]["tool_calls"] *= 2
    with pytest.raises(
        ValueError, match=r"tool_calls\[1\]\.id: saw \"call_1\", expected an id that no other open call"
    ):
        validate_chat(line, 1)


@pytest.mark.parametrize("muted", [{"train": False}, {"weight": 0}])
def test_there_must_be_something_to_learn(muted: dict[str, Any]) -> None:
    messages = [{**m, **muted} if m["role"] == "assistant" else m for m in GOOD["messages"]]
    with pytest.raises(ValueError, match="expected at least one assistant message in the loss"):
        validate_chat({**GOOD, "messages": messages}, 1)
    with pytest.raises(ValueError, match="at least one assistant message"):
        validate_chat({"messages": GOOD["messages"][:2]}, 1)


def test_complaints_can_be_printed() -> None:
    with pytest.raises(ValueError) as error:
        validate_chat({"messages": [{"role": "\ud800"}]}, 1)
    str(error.value).encode()


@given(dialogues())
@settings(max_examples=50)
def test_honest_dialogues_pass_and_encode(codec: Codec, messages: list[dict[str, Any]]) -> None:
    """Hostile text and foreign ids are no fault of form: they pass, and what passes the codec takes."""
    spoken = [m if m.get("tool_calls") or m["content"] else {**m, "content": "."} for m in messages]
    names = {one["function"]["name"] for m in messages for one in m.get("tool_calls") or []}
    tools = [{"type": "function", "function": {"name": name}} for name in sorted(names)]
    passed, declared = validate_chat(json.loads(json.dumps({"messages": spoken, "tools": tools})), 1)
    assert any(codec.encode(passed, declared).mask)
