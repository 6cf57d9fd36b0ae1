"""Every kind of check: what it accepts, and the type of failure it gives to what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openk2.evaluate.testrun import Prompt
from openk2.evaluate.testrun.replies import FAULTS, Fault, Reply, ToolCall
from openk2.evaluate.testrun.verdicts import FAILURES

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "number"}}, "required": ["city"],
    }}}
    for name in ("weather", "news")
]  # fmt: skip


def found(check: dict[str, Any] | None, reply: Reply | str) -> str:
    """`pass`, or the type of failure."""
    given = {"category": "c", "prompt": "?", "tools": TOOLS} | ({"check": check} if check else {})
    said = Reply(content=reply, finish_reason="stop") if isinstance(reply, str) else reply
    verdict = Prompt.parse(given, "p", "p").judge(said)
    assert (verdict.failure == "") == (verdict.passed is True or verdict.name == "unchecked")
    assert verdict.failure in ("", *FAILURES, *FAULTS) and (verdict.passed is True or verdict.reason)
    return "pass" if verdict.passed else verdict.failure


def calling(*calls: tuple[str, Any], content: str = "") -> Reply:
    made = (ToolCall(name, given if isinstance(given, str) else json.dumps(given)) for name, given in calls)
    return Reply(content=content, tool_calls=tuple(made), finish_reason="tool_calls")


@pytest.mark.parametrize(
    ("check", "text", "expected"),
    [
        ({"exact": "Yes"}, " Yes\n", "pass"),
        ({"exact": "Yes"}, "yes", "wrong"),
        ({"exact": ["a", "b"]}, "b", "pass"),
        ({"contains": "two words"}, "it says two words here", "pass"),
        ({"contains": ["x", "y"]}, "zzz", "wrong"),
        ({"regex": "^a+$"}, "aaa", "pass"),
        ({"regex": "^a+$"}, "ab", "wrong"),
        ({"numeric": 42}, "I think it is 41. No: **42**.", "pass"),
        ({"numeric": 42}, "It is 42, because 6 x 7.", "wrong"),
        ({"numeric": 42}, "\\boxed{42} (see page 7)", "pass"),
        ({"numeric": 42}, "no idea", "unparsable"),
        ({"numeric": 1234.5}, "$1,234.50", "pass"),
        ({"numeric": 1000}, "\\boxed{1{,}000}", "pass"),
        ({"numeric": -5}, "x = −5", "pass"),
        ({"numeric": 60}, "60km", "pass"),
        ({"numeric": 12}, "12 m^2", "pass"),
        ({"numeric": 3}, "共３个", "pass"),
        ({"numeric": 0.3}, "0.30", "pass"),
        ({"numeric": 3.14, "tolerance": 0.01}, "3.149", "pass"),
        ({"numeric": 3.14, "tolerance": 0.01}, "3.16", "wrong"),
        ({"json_schema": SCHEMA}, '{"n": 1}', "pass"),
        ({"json_schema": SCHEMA}, '```json\n{"n": 1}\n```', "pass"),
        ({"json_schema": SCHEMA}, '{"n": "1"}', "wrong"),
        ({"json_schema": SCHEMA}, 'Here: {"n": 1}', "unparsable"),
        ({"json_schema": SCHEMA}, '{"n": NaN}', "unparsable"),
        ({"json_schema": {"items": {"$ref": "#"}}}, "[" * 800 + "]" * 800, "wrong"),  # deeper than Python's stack
        ({"contains": "a", "regex": "b"}, "ab", "pass"),
        ({"contains": "a", "regex": "b"}, "ac", "wrong"),
        ({"tool_call": None}, "no tool", "pass"),
        ({"tool_call": None, "contains": "7"}, "no tool", "wrong"),
        ({"tool_call": {"name": "weather"}}, "It rains.", "no_tool_call"),
        ({"exact": "x"}, " ", "empty"),
        (None, "anything", ""),
    ],
)  # fmt: skip
def test_checks_of_text(check: dict[str, Any] | None, text: str, expected: str) -> None:
    assert found(check, text) == expected


OSLO = {"tool_call": {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}}
BY_SCHEMA = {"tool_call": {"name": "weather", "schema": {"properties": {"city": {"pattern": "^O"}}}}}
TWO = {"tool_call": [{"name": "weather", "arguments": {"city": city}} for city in ("Oslo", "Lima")]}


@pytest.mark.parametrize(
    ("check", "calls", "expected"),
    [
        (OSLO, [("weather", {"days": 2.0, "city": "Oslo"})], "pass"),
        (OSLO, [("weather", {"city": "Oslo", "days": 3})], "wrong_arguments"),
        (OSLO, [("weather", {"city": "Oslo"})], "wrong_arguments"),
        (OSLO, [("weather", {"city": "Oslo", "days": True})], "invalid_arguments"),
        (OSLO, [("weather", {"city": "Oslo", "day": 2})], "invalid_arguments"),
        (OSLO, [("weather", '{"city": "Oslo"')], "invalid_arguments"),
        (OSLO, [("news", {"city": "Oslo"})], "wrong_tool"),
        (OSLO, [("weather", {"city": "Oslo", "days": 2})] * 2, "unexpected_tool_call"),
        (BY_SCHEMA, [("weather", {"city": "Ottawa"})], "pass"),
        (BY_SCHEMA, [("weather", {"city": "Lima"})], "wrong_arguments"),
        ({"tool_call": {"name": "news"}}, [("news", {"city": "x"})], "pass"),
        (TWO, [("weather", {"city": "Lima"}), ("weather", {"city": "Oslo"})], "pass"),
        (TWO, [("weather", {"city": "Lima"})], "no_tool_call"),
        ({"tool_call": None}, [("news", {"city": "x"})], "unexpected_tool_call"),
        ({"exact": "x"}, [("news", {"city": "x"})], "unexpected_tool_call"),
    ],
)  # fmt: skip
def test_checks_of_calls(check: dict[str, Any], calls: list[tuple[str, Any]], expected: str) -> None:
    assert found(check, calling(*calls)) == expected


def test_what_was_not_an_answer_is_told_apart_from_wrong_ones() -> None:
    check = {"exact": "x"}
    for kind in FAULTS:
        reply = Reply(content="x", fault=Fault(kind, "because"))
        assert found(check, reply) == kind
        assert Prompt.parse({"category": "c", "prompt": "?", "check": check}, "p", "p").judge(reply).passed is None
    assert found(check, Reply(refusal="I must not")) == "refused"
    assert found(check, Reply(content="y", finish_reason="content_filter")) == "refused"
    assert found(check, Reply(content="y", finish_reason="length")) == "length"
    assert found(check, Reply(reasoning="hm", finish_reason="length")) == "length"
    assert found(check, Reply(content="x", finish_reason="length")) == "pass"


TESTS = {"unit_tests": "assert double(2) == 4\nassert double('a') == 'aa'\n", "entry_point": "double"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("```python\ndef double(x):\n    return 2 * x\n```", "pass"),
        ("def double(x):\n    return 2 * x", "pass"),
        ("First:\n```py\ndouble = lambda x: x\n```\nbetter:\n```py\ndouble = lambda x: x + x\n```\nDone.", "pass"),
        ("```python\ndef double(x):\n    return x ** 2\n```", "code_failed"),
        ("```python\nimport nothing_like_this\ndef double(x):\n    return 2 * x\n```", "code_failed"),
        ("```python\ndef triple(x):\n    return 3 * x\n```", "unparsable"),
        ("```python\ndef double(x):\n    return (2 * x\n```", "unparsable"),
        ("Multiply it by two.", "unparsable"),
    ],
)
def test_checks_of_code(answer: str, expected: str) -> None:
    assert found(TESTS, answer) == expected
