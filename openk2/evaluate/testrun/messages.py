"""Reading messages, tools and tool choice in OpenAI's form, strictly: what a server would refuse is refused before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openk2.evaluate.testrun import fields
from openk2.protocols import Message, ToolSpec

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
_FUNCTION = ("name", "description", "parameters", "strict")
_CHOICES = ("auto", "none", "required")


def parse_messages(value: Any, where: str) -> list[Message]:
    """At least one message; content is text, a list of parts, or null beside tool calls."""
    if not isinstance(value, list) or not value:
        fields.refuse(where, value, "a list of messages")
    for at, message in enumerate(value):
        place = f"{where}[{at}]"
        fields.an_object(message, place, _MESSAGE, ("role", "content"))
        if message["role"] not in _ROLES:
            fields.refuse(f"{place}.role", message["role"], f"one of {', '.join(_ROLES)}")
        _check_content(message, f"{place}.content")
        if message["role"] == "tool":
            fields.a_text(message.get("tool_call_id"), f"{place}.tool_call_id")
        for call in message.get("tool_calls", ()):
            _check_call(call, f"{place}.tool_calls")
    return [dict(message) for message in value]


def _check_content(message: Message, where: str) -> None:
    content = message["content"]
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return
    if not isinstance(content, list) or not content:
        fields.refuse(where, content, "text, a list of parts, or null beside tool_calls")
    for part in content:
        fields.an_object(part, where, (), ("type",))


def _check_call(call: Any, where: str) -> None:
    fields.an_object(call, where, ("id", "type", "function"), ("id", "type", "function"))
    function = fields.an_object(call["function"], f"{where}.function", ("name", "arguments"), ("name", "arguments"))
    fields.a_text(function["name"], f"{where}.function.name")
    if not isinstance(function["arguments"], str):
        fields.refuse(f"{where}.function.arguments", function["arguments"], "the arguments as JSON text")


def parse_tools(value: Any, where: str) -> list[ToolSpec]:
    """At least one function, each with a name of its own and a schema of its parameters."""
    if not isinstance(value, list) or not value:
        fields.refuse(where, value, "a list of tools")
    names: list[str] = []
    for at, tool in enumerate(value):
        place = f"{where}[{at}]"
        fields.an_object(tool, place, ("type", "function"), ("type", "function"))
        if tool["type"] != "function":
            fields.refuse(f"{place}.type", tool["type"], '"function"')
        function = fields.an_object(tool["function"], f"{place}.function", _FUNCTION, ("name", "parameters"))
        fields.a_schema(function["parameters"], f"{place}.function.parameters")
        names.append(fields.a_text(function["name"], f"{place}.function.name"))
    if len(set(names)) < len(names):
        fields.refuse(where, names, "names that differ")
    return value


def parse_tool_choice(source: Mapping[str, Any], where: str) -> Any:
    """`auto`, `none`, `required`, or one declared function by name."""
    value = source["tool_choice"]
    names = [tool["function"]["name"] for tool in source.get("tools", ())]
    if not names:
        raise ValueError(f"{where}: saw {fields.quoted(value)} without tools, expected 'tools' too; add them")
    if isinstance(value, str):
        return value if value in _CHOICES else fields.refuse(where, value, f"one of {', '.join(_CHOICES)}")
    fields.an_object(value, where, ("type", "function"), ("type", "function"))
    function = fields.an_object(value["function"], f"{where}.function", ("name",), ("name",))
    if function["name"] not in names:
        fields.refuse(f"{where}.function.name", function["name"], f"one of {', '.join(names)}")
    return value
