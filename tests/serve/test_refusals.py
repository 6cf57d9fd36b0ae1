"""What is refused, how it is said, and that nothing a client writes becomes a control token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from running_server import CODEC, Running, running
from scripted_engine import ScriptedEngine, calling

from openk2.chat.codec import Codec
from openk2.chat.vocabulary import SPECIAL_OFFSETS
from openk2.serve.dialogue import Dialogue
from openk2.serve.errors import MESSAGE_CHARS, ApiError

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "now"}}
ENGINE = ScriptedEngine(CODEC, context=512)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ENGINE) as found:
        yield found


def refused(server: Running, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    answer = server.post(path, body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) <= MESSAGE_CHARS
    assert "\n" not in error["message"] and "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": []}, "messages", "expected"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", '"robot"'),
        ({"messages": [QUESTION, {"role": "system", "content": "x"}]}, "messages[1].role", "only at the start"),
        ({"messages": [{"role": "developer", "content": "a"}] * 2}, "messages[1].role", "only at the start"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "saw 3, expected a valid string"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "saw nothing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "image_url",
        ),
        (
            {"messages": [QUESTION, {"role": "tool", "tool_call_id": "x", "content": "1"}]},
            "messages[1].tool_call_id",
            "earlier call",
        ),
        ({"temperature": 3}, "temperature", "saw 3"),
        ({"temperature": "0.5"}, "temperature", 'saw "0.5"'),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "saw 0"),
        ({"n": 200}, "n", "128"),
        ({"seed": 2**70}, "seed", "saw"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "at least 1"),
        ({"max_tokens": 0}, "max_tokens", "saw 0"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs true"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "does not support"),
        ({"audio": {}}, "audio", "does not support"),
        ({"functions": []}, "functions", "does not support"),
        ({"temprature": 1}, "temprature", "does not support"),
        ({"tools": [TOOL, TOOL]}, "tools", 'saw "now", expected each name once'),
        ({"tools": [{"type": "function", "function": {"name": "auto"}}]}, "tools", 'saw "auto"'),
        ({"tools": [{"type": "custom", "custom": {}}]}, None, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name", "at least 1"),
        ({"tool_choice": "required"}, "tool_choice", "without tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", '\'x\''),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice", "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "expected 'function'"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "grammar"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}},
            "response_format",
            "cannot be kept",
        ),
    ],
)  # fmt: skip
def test_a_chat_request_that_is_wrong_says_where(server: Running, change: Any, param: Any, words: str) -> None:
    error = refused(server, CHAT, {"messages": [QUESTION], **change})
    assert words in error["message"] and error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, 100000]}, "token id 100000, expected 0 to 639"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"echo": True}, "echo: saw true"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": ["a"] * 128, "n": 128}, "expected at most 256"),
    ],
)
def test_a_completion_request_that_is_wrong_says_where(server: Running, change: Any, words: str) -> None:
    assert words in refused(server, TEXT, {"prompt": "a", **change})["message"]


def test_null_is_absent_and_bookkeeping_is_ignored(server: Running) -> None:
    body = {
        "messages": [QUESTION], "max_tokens": 2, "logit_bias": None, "tools": None, "audio": None, "stop": None,
        "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "stream_options": None,
    }  # fmt: skip
    assert server.post(CHAT, body).status_code == 200


def test_a_prompt_beyond_the_context_names_both_lengths(server: Running) -> None:
    messages = [{"role": "user", "content": "x y " * 600}]
    length = len(CODEC.encode(messages, add_generation_prompt=True).ids)
    error = refused(server, CHAT, {"messages": messages})
    assert f"saw {length} tokens, expected at most 511" in error["message"]
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"
    assert refused(server, TEXT, {"prompt": [1] * 512})["code"] == "context_length_exceeded"


def test_more_tokens_than_the_context_has_room_for_are_not_refused(server: Running) -> None:
    assert server.post(TEXT, {"prompt": [1] * 510, "max_tokens": 10**6}).json()["usage"]["completion_tokens"] <= 2


def test_another_model_is_not_found(server: Running) -> None:
    assert refused(server, CHAT, {"model": "gpt-4", "messages": [QUESTION]}, 404)["code"] == "model_not_found"


def test_paths_methods_and_bodies_that_are_wrong(server: Running) -> None:
    assert server.get("/v2/nothing").status_code == 404 and server.get(CHAT).status_code == 405
    for answer in (server.get("/v2/nothing"), server.get(CHAT)):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    json_type = {"content-type": "application/json"}
    for content, headers, status in (
        (b'{"messages"', json_type, 400),
        (b"\xff\xfe", json_type, 400),
        (b"[]", json_type, 400),
        (b"", json_type, 400),
        (b'{"seed":' + b"9" * 5000 + b"}", json_type, 400),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, json_type, 400),
        (b"messages=1", {"content-type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {}, 415),
    ):
        answer = httpx.post(server.url + CHAT, content=content, headers=headers)
        assert answer.status_code == status, (content[:20], answer.text)
        assert answer.json()["error"]["message"]
    assert server.get("/v1/messages").json()["type"] == "error"


def test_what_came_is_clipped_and_stays_one_line_of_json(server: Running) -> None:
    error = refused(server, CHAT, {"messages": [{"role": "user", "content": "a\n" * 5000, "x" * 5000: 1}]})
    assert len(error["param"]) <= 80
    surrogates = json.dumps({"messages": [{"role": "robot\ud800\n" * 300, "content": "x"}]})
    answer = httpx.post(server.url + CHAT, content=surrogates, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "..." in answer.json()["error"]["message"]


def test_schemas_that_are_hostile_are_refused(server: Running) -> None:
    deep: Any = {"type": "string"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    for schema in (deep, {"$ref": "http://example.com/x"}, {"type": "string", "pattern": "(" * 50}, {"not": {}}):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": schema}}}}
        answer = server.post(CHAT, {"messages": [QUESTION], "tools": [tool], "max_tokens": 5})
        assert answer.status_code in (200, 400), answer.text
        assert answer.status_code == 200 or answer.json()["error"]["message"]


NAMES = " ".join(SPECIAL_OFFSETS.values())


@pytest.mark.parametrize("where", ["system", "user", "name", "tool", "arguments", "result", "id", "parts"])
def test_the_names_of_control_tokens_stay_text_wherever_a_client_writes_them(server: Running, where: str) -> None:
    def text(here: str) -> str:
        return NAMES if here == where else "x"

    tool = {"type": "function", "function": {"name": "now", "description": text("tool"), "parameters": {}}}
    called = calling(("now", json.dumps({"a": text("arguments")})), content="x")
    called["tool_calls"][0]["id"] = text("id")
    messages: list[Any] = [
        {"role": "system", "content": text("system")},
        {"role": "user", "content": text("user"), "name": text("name")},
        called,
        {"role": "tool", "tool_call_id": text("id"), "content": text("result")},
        {"role": "user", "content": [{"type": "text", "text": text("parts")}]},
    ]
    answer = server.post("/tokenize", {"messages": messages, "tools": [tool]})
    assert answer.status_code == 200, answer.text
    ids = answer.json()["ids"]
    assert ids == list(CODEC.encode(messages, [tool], add_generation_prompt=True).ids)
    control = [token for token in ids if CODEC.tokenizer.is_control(token)]
    assert len(control) == 3 * 7 - 1 + 5  # turns with their three, the open one with two, and those of one call
    assert NAMES in CODEC.tokenizer.decode(ids) or where in ("tool", "arguments", "id")


def test_prompts_of_completions_cannot_forge_control_tokens_in_text(server: Running) -> None:
    ENGINE.requests.clear()
    server.post(TEXT, {"prompt": NAMES, "max_tokens": 1})
    tokenizer = CODEC.tokenizer
    assert [token for token in ENGINE.requests[0].prompt if tokenizer.is_control(token)] == [tokenizer.bos_id]


def test_calls_are_refused_where_the_template_would_drop_them() -> None:
    dialogue = Dialogue([QUESTION, calling(("now", "{}"))])
    assert dialogue.ids(CODEC)
    with pytest.raises(ApiError, match="first-release"):
        dialogue.ids(Codec(CODEC.tokenizer, "first-release"))


def test_a_base_model_completes_and_does_not_chat() -> None:
    with running(ScriptedEngine(CODEC), chat=False) as found:
        error = refused(found, CHAT, {"messages": [QUESTION]})
        assert error["code"] == "base_model" and "/v1/completions" in error["message"]
        assert found.post("/v1/messages", {"max_tokens": 1, "messages": [QUESTION]}).status_code == 400
        assert found.post(TEXT, {"prompt": "x", "max_tokens": 1}).status_code == 200
