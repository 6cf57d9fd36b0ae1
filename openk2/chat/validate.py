"""One line of a user's OpenAI-format chat JSONL, checked before it can train anything.

Invariant: what passes encodes without error and teaches something: roles in
an order that K2's layout can carry, every tool result tied to a call, every
call to a declared tool with arguments its schema accepts, at least one
assistant message in the loss. Each complaint is one line: where, what was
seen, what was expected, what to do. Left out: judging the text itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable

from openk2.chat.template import ROLES
from openk2.protocols import Message, ToolSpec

_SEEN_CHARS = 60


def validate_chat(obj: Any, line: int) -> tuple[list[Message], list[ToolSpec]]:
    """The messages and tools of `{"messages": [...], "tools": [...]?}`, unchanged; other keys are left alone.

    `line` is the 1-based line number for the message of the `ValueError`.
    """
    return _Check(line).dialogue(obj)


class _Check:
    """The rules, in reading order; holds what the rules need to remember of earlier messages."""

    def __init__(self, line: int) -> None:
        self._line = line
        self._validators: dict[str, Any] = {}
        self._open: dict[str, str] = {}  # call id -> tool name, of calls not answered yet

    def dialogue(self, obj: Any) -> tuple[list[Message], list[ToolSpec]]:
        if not isinstance(obj, dict):
            self._refuse("the line", obj, 'an object {"messages": [...]}', "write one JSON object a line")
        messages, tools = obj.get("messages"), obj.get("tools")
        if not isinstance(messages, list) or not messages:
            self._refuse("messages", messages, "a list with at least one message", "add the dialogue's messages")
        if tools is not None and not isinstance(tools, list):
            self._refuse("tools", tools, "a list of tool declarations", "wrap the declaration in a list")
        for at, tool in enumerate(tools or []):
            self._tool(f"tools[{at}]", tool)
        previous = ""
        for at, message in enumerate(messages):
            previous = self._message(f"messages[{at}]", message, previous)
        if not any(_learns(message) for message in messages):
            self._refuse(
                "messages",
                [message["role"] for message in messages],
                "at least one assistant message in the loss",
                'add one, or take "train": false away',
            )
        return messages, list(tools or [])

    def _tool(self, path: str, tool: Any) -> None:
        if not isinstance(tool, dict) or tool.get("type") != "function":
            self._refuse(path, tool, '{"type": "function", "function": {...}}', "wrap the declaration so")
        function = tool.get("function")
        if not isinstance(function, dict):
            self._refuse(f"{path}.function", function, "an object with name and parameters", "add it")
        name, schema = self._name(f"{path}.function.name", function.get("name")), function.get("parameters", {})
        if name in self._validators:
            self._refuse(f"{path}.function.name", name, "a name not declared before", "remove the second declaration")
        if not isinstance(schema, dict):
            self._refuse(f"{path}.function.parameters", schema, "a JSON schema object", "correct the schema")
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            where = "".join(f"[{key!r}]" for key in error.absolute_path)
            self._refuse(
                f"{path}.function.parameters{where}",
                error.instance,
                f"a JSON schema ({_clip(error.message)})",
                "correct it",
            )
        # An explicit registry: the default one would fetch a remote `$ref` over the network.
        self._validators[name] = jsonschema.Draft202012Validator(schema, registry=Registry())

    def _message(self, path: str, message: Any, previous: str) -> str:
        """Check one message against the role before it; returns its own role."""
        if not isinstance(message, dict):
            self._refuse(path, message, "an object with role and content", "write the message as an object")
        role = message.get("role")
        if role not in ROLES:
            hint = "use system" if role == "developer" else "rename the role"
            self._refuse(f"{path}.role", role, f"one of {', '.join(ROLES)}", hint)
        self._order(path, role, previous)
        self._content(path, message)
        for key in ("name", "tool_call_id"):
            if message.get(key) is not None and not isinstance(message[key], str):
                self._refuse(f"{path}.{key}", message[key], "a string", "quote it or remove it")
        self._loss_keys(path, message)
        if role == "assistant":
            self._calls(path, message)
        elif message.get("tool_calls"):
            self._refuse(f"{path}.tool_calls", message["tool_calls"], "calls in assistant messages only", "move them")
        if role == "tool":
            self._result(path, message)
        return str(role)

    def _order(self, path: str, role: str, previous: str) -> None:
        if role == "system" and previous:
            self._refuse(f"{path}.role", role, "a system message only at the start", "move it to messages[0]")
        if role != "tool" and self._open:
            expected = f"a tool result for {_short(next(iter(self._open)))} first"
            self._refuse(f"{path}.role", role, expected, "add the result, or remove the call")
        if role == previous == "assistant":
            self._refuse(f"{path}.role", role, "a user or tool message after an assistant's", "merge the two messages")

    def _content(self, path: str, message: Message) -> None:
        content, path = message.get("content"), f"{path}.content"
        if content is None:
            if not message.get("tool_calls"):
                self._refuse(path, content, "text", "add the text, or remove the message")
        elif isinstance(content, list):
            for at, part in enumerate(content):
                if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                    self._refuse(f"{path}[{at}]", part, 'a part {"type": "text", "text": ...}', "keep text parts only")
        elif not isinstance(content, str):
            self._refuse(path, content, "a string or a list of text parts", "write it as a string")
        if message["role"] == "assistant" and not content and not message.get("tool_calls"):
            self._refuse(path, content, "text or tool_calls in an assistant message", "add one, or remove the message")

    def _loss_keys(self, path: str, message: Message) -> None:
        if not isinstance(message.get("train", True), bool):
            self._refuse(f"{path}.train", message["train"], "true or false", "correct it")
        weight = message.get("weight", 1)
        if isinstance(weight, bool) or weight not in (0, 1):
            self._refuse(f"{path}.weight", weight, "0 or 1", "correct it; fractions are not supported")

    def _calls(self, path: str, message: Message) -> None:
        if message.get("function_call") is not None:
            self._refuse(f"{path}.function_call", message["function_call"], "tool_calls", "convert it to tool_calls")
        calls = message.get("tool_calls")
        if calls is None:
            return
        if not isinstance(calls, list):
            self._refuse(f"{path}.tool_calls", calls, "a list of calls", "wrap the call in a list")
        for at, call in enumerate(calls):
            self._call(f"{path}.tool_calls[{at}]", call)

    def _call(self, path: str, call: Any) -> None:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            self._refuse(path, call, '{"id": ..., "type": "function", "function": {...}}', "write the call so")
        id_text = call.get("id")
        if not isinstance(id_text, str) or not id_text:
            self._refuse(f"{path}.id", id_text, "a string that the tool result repeats", "add an id")
        if id_text in self._open:
            self._refuse(f"{path}.id", id_text, "an id that no other open call has", "number the calls")
        name = self._name(f"{path}.function.name", function.get("name"))
        if name not in self._validators:
            known = ", ".join(sorted(self._validators)) or "none"
            self._refuse(f"{path}.function.name", name, f"a declared tool ({known})", "declare it in tools")
        self._arguments(f"{path}.function.arguments", name, function.get("arguments"))
        self._open[id_text] = name

    def _arguments(self, path: str, name: str, arguments: Any) -> None:
        value = arguments
        if isinstance(arguments, str):
            try:
                value = json.loads(arguments)
            except (ValueError, RecursionError) as error:
                self._refuse(path, arguments, f"JSON ({error})", "write the arguments as a JSON object")
        if not isinstance(value, dict):
            self._refuse(path, arguments, "a JSON object", 'write {} for no arguments, or {"name": value}')
        try:
            fault = jsonschema.exceptions.best_match(self._validators[name].iter_errors(value))
        except (Unresolvable, RecursionError) as error:
            where, problem = f"the parameters declared for {name}", f"{type(error).__name__}: {error}"
            self._refuse(where, problem, "references that resolve inside it", "write the schema in full")
        if fault is not None:
            at = "".join(f"[{key!r}]" for key in fault.absolute_path)
            expected = f"what {name} declares ({_clip(fault.message)})"
            self._refuse(path + at, fault.instance, expected, "correct the value or the schema")

    def _result(self, path: str, message: Message) -> None:
        id_text = message.get("tool_call_id")
        if id_text not in self._open:
            waiting = ", ".join(map(_short, self._open)) or "none"
            self._refuse(
                f"{path}.tool_call_id",
                id_text,
                f"the id of a call not answered yet ({waiting})",
                "correct the id, or add the call before it",
            )
        called = self._open.pop(id_text)
        if message.get("name") not in (None, "", called):
            self._refuse(f"{path}.name", message["name"], f"the called tool, {called}", "correct it or leave it out")

    def _name(self, path: str, name: Any) -> str:
        if not isinstance(name, str) or not name:
            self._refuse(path, name, "a tool name", "add the name")
        return name

    def _refuse(self, path: str, seen: Any, expected: str, remedy: str) -> NoReturn:
        text = f"line {self._line}: {path}: saw {_short(seen)}, expected {expected}; {remedy}"
        printable = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates cannot be printed
        raise ValueError(" ".join(printable.split()))


def _learns(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and message.get("train", True) and message.get("weight", 1) != 0


def _short(value: Any) -> str:
    """What was seen, as JSON, on one line and not longer than it takes to find it."""
    if value is None:
        return "nothing"
    return _clip(json.dumps(value, ensure_ascii=False, default=repr))


def _clip(text: str) -> str:
    return text if len(text) <= _SEEN_CHARS else text[: _SEEN_CHARS - 3] + "..."
