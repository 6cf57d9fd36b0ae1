"""Server-sent events to a reply: bytes to events, and a chat completion's deltas put together.

Invariants: how the bytes are split changes nothing; comments, empty events and
fields other than `data` are passed over. Left out: reconnecting (`id`, `retry`),
and any choice but the first.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any

from openk2.evaluate.testrun.replies import Fault, Reply, ToolCall

DONE = "[DONE]"
_MESSAGE_CHARS = 500


class EventParser:
    """The `data` of each event, as the bytes come in."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._rest = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[str]:
        """What was completed by these bytes."""
        # A carriage return at the end may be half of a line's end.
        *lines, self._rest = re.split(r"\r\n|\n|\r(?!\Z)", self._rest + self._decoder.decode(chunk))
        return [event for line in lines if (event := self._take(line)) is not None]

    def end(self) -> list[str]:
        """What stands at the end without the empty line that should close it."""
        lines = [*re.split(r"\r\n|\n|\r", self._rest + self._decoder.decode(b"", True)), ""]
        self._rest = ""
        return [event for line in lines if (event := self._take(line)) is not None]

    def _take(self, line: str) -> str | None:
        if line == "":
            event, self._data = "\n".join(self._data), []
            return event or None
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        return None


class StreamFault(Exception):
    """Something in the stream that is no part of an answer."""

    def __init__(self, fault: Fault, code: str = "") -> None:
        super().__init__(fault.message)
        self.fault, self.code = fault, code


class Collector:
    """A reply as it grows; `first_token_s` is set by the first text or call."""

    def __init__(self) -> None:
        self.finished = False  # a finish reason has come
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._finish_reason = self._model = ""
        self._tokens: tuple[int | None, int | None] = (None, None)
        self._first: float | None = None

    def add(self, data: str, seconds: float) -> None:
        """Take an event that came `seconds` after the request. Raises `StreamFault`."""
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise StreamFault(Fault("bad_stream", f"an event that is not JSON: {data[:80]!r}")) from None
        if not isinstance(chunk, Mapping):
            raise StreamFault(Fault("bad_stream", f"an event that is no object: {data[:80]!r}"))
        if chunk.get("error"):
            message, code = error_text(chunk)
            status = int(code) if code.isdecimal() and len(code) == 3 else None
            raise StreamFault(Fault("error_event", message, status), code)
        self._model = _text(chunk.get("model")) or self._model
        usage = chunk.get("usage")
        if isinstance(usage, Mapping):
            self._tokens = (_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
        for choice in _items(chunk.get("choices"), "choices"):
            if isinstance(choice, Mapping) and choice.get("index", 0) == 0:
                self._add_choice(choice, seconds)

    @property
    def begun(self) -> bool:
        """Whether anything of the answer has come."""
        return self._first is not None

    def reply(self, total_s: float, fault: Fault | None = None) -> Reply:
        calls = [self._calls[index] for index in sorted(self._calls)]
        return Reply(
            content="".join(self._content),
            reasoning="".join(self._reasoning),
            refusal="".join(self._refusal),
            tool_calls=tuple(ToolCall(call["name"], call["arguments"], call["id"]) for call in calls),
            finish_reason=self._finish_reason,
            model=self._model,
            prompt_tokens=self._tokens[0],
            completion_tokens=self._tokens[1],
            first_token_s=self._first,
            total_s=total_s,
            fault=fault,
        )

    def _add_choice(self, choice: Mapping[str, Any], seconds: float) -> None:
        said = _object(choice.get("delta") or choice.get("message"), "delta")
        parts = (
            (self._content, _text(said.get("content"))),
            # Servers name what was thought in two ways.
            (self._reasoning, _text(said.get("reasoning_content")) or _text(said.get("reasoning"))),
            (self._refusal, _text(said.get("refusal"))),
        )
        for pieces, piece in parts:
            if piece:
                pieces.append(piece)
        calls = [call for call in _items(said.get("tool_calls"), "tool_calls") if isinstance(call, Mapping)]
        for call in calls:
            self._add_call(call)
        if self._first is None and (calls or any(piece for _, piece in parts)):
            self._first = seconds
        self._finish_reason = _text(choice.get("finish_reason")) or self._finish_reason
        self.finished = bool(self._finish_reason)

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        known = self._calls.setdefault(self._index(piece), {"id": "", "name": "", "arguments": ""})
        function = _object(piece.get("function"), "function")
        known["id"] = known["id"] or _text(piece.get("id"))
        name, arguments = _text(function.get("name")), function.get("arguments")
        if name != known["name"] and not known["arguments"]:  # some say the whole name again with every piece
            known["name"] += name
        known["arguments"] += arguments if isinstance(arguments, str) else _as_json(arguments)

    def _index(self, piece: Mapping[str, Any]) -> int:
        """The call that a piece belongs to; where no index is given, an id that is new begins another."""
        index = piece.get("index")
        if isinstance(index, int):
            return index
        last = max(self._calls, default=-1)
        begins = last < 0 or (piece.get("id") and piece["id"] != self._calls[last]["id"])
        return last + 1 if begins else last


def error_text(body: Any) -> tuple[str, str]:
    """(message, code) of an error in any of the shapes that servers give it."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(error, Mapping):
        return str(error)[:_MESSAGE_CHARS], ""
    message = error.get("message") or error.get("detail") or _as_json(error)
    return " ".join(str(message).split())[:_MESSAGE_CHARS], str(error.get("code") or error.get("type") or "")


def _object(value: Any, name: str) -> Mapping[str, Any]:
    """{} where there is none. Raises `StreamFault`."""
    if not isinstance(value or {}, Mapping):
        raise StreamFault(Fault("bad_stream", f"{name}: saw {str(value)[:80]!r}, expected an object"))
    return value or {}


def _items(value: Any, name: str) -> list[Any]:
    """[] where there are none. Raises `StreamFault`."""
    if not isinstance(value or [], list):
        raise StreamFault(Fault("bad_stream", f"{name}: saw {str(value)[:80]!r}, expected a list"))
    return value or []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _as_json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
