"""Anthropic's answers, made of stream events: sent as they are, or folded into one message.

Invariants: one block is open at a time; the whole message is the
concatenation of the events that a stream would have sent.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from openk2.serve.anthropic_requests import shown_id
from openk2.serve.errors import ApiError, clip
from openk2.serve.exchange import Exchange
from openk2.serve.wire import event
from openk2.serve.worker import Ended

StreamEvent = dict[str, Any]

PING: StreamEvent = {"type": "ping"}
KEEP_ALIVE = event(PING, "ping")
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class _Blocks:
    """The content blocks of a message, opened and closed as text and calls come."""

    def __init__(self) -> None:
        self._index = -1
        self._open = ""  # the type of the open block

    def text(self, text: str) -> list[StreamEvent]:
        opened = [] if self._open == "text" else self._begin({"type": "text", "text": ""})
        return [*opened, self._delta({"type": "text_delta", "text": text})]

    def call(self, call: dict[str, Any]) -> list[StreamEvent]:
        function, opened = call["function"], list[StreamEvent]()
        if "id" in call:
            opened = self._begin(
                {"type": "tool_use", "id": shown_id(call["id"]), "name": function["name"], "input": {}}
            )
        if not function["arguments"]:
            return opened
        return [*opened, self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})]

    def close(self) -> list[StreamEvent]:
        stop = {"type": "content_block_stop", "index": self._index}
        opened, self._open = self._open, ""
        return [stop] if opened else []

    def _begin(self, block: StreamEvent) -> list[StreamEvent]:
        closed = self.close()
        self._index, self._open = self._index + 1, block["type"]
        return [*closed, {"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, delta: StreamEvent) -> StreamEvent:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


async def message_events(exchange: Exchange, model: str, prompt_tokens: int) -> AsyncIterator[StreamEvent]:
    """A message as it comes. Which prompt tokens were in the cache is known, and told, at the end."""
    message: StreamEvent = {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": prompt_tokens, "output_tokens": 0},
    }
    yield {"type": "message_start", "message": message}
    yield PING
    blocks = _Blocks()
    async for _, found in exchange.events():
        if isinstance(found, Ended):
            for closing in [*blocks.close(), _message_delta(found)]:
                yield closing
            continue
        for following in blocks.text(found.text) if found.text else ():
            yield following
        for call in found.calls:
            for following in blocks.call(call):
                yield following
    yield {"type": "message_stop"}


def _message_delta(ended: Ended) -> StreamEvent:
    stopped = ended.stop_string is not None
    delta = {
        "stop_reason": "stop_sequence" if stopped else _STOP_REASONS[ended.reason],
        "stop_sequence": ended.stop_string,
    }
    usage = {
        "input_tokens": ended.prompt_tokens - ended.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": ended.cached_tokens,
        "output_tokens": ended.sampled_tokens,
    }
    return {"type": "message_delta", "delta": delta, "usage": usage}


async def stream_events(messages: AsyncIterator[StreamEvent]) -> AsyncGenerator[bytes, None]:
    """A stream's events; a failure on the way is the last."""
    try:
        async for found in messages:
            yield event(found, found["type"])
    except ApiError as error:
        yield event(error.anthropic(), "error")


async def whole_message(messages: AsyncIterator[StreamEvent]) -> StreamEvent:
    """The message: its events, folded."""
    message: StreamEvent = {}
    arguments: dict[int, str] = {}
    async for found in messages:
        if found["type"] == "message_start":
            message = found["message"]
        elif found["type"] == "content_block_start":
            message["content"].append(dict(found["content_block"]))
        elif found["type"] == "content_block_delta":
            index, delta = found["index"], found["delta"]
            if delta["type"] == "text_delta":
                message["content"][index]["text"] += delta["text"]
            else:
                arguments[index] = arguments.get(index, "") + delta["partial_json"]
        elif found["type"] == "message_delta":
            message |= {**found["delta"], "usage": found["usage"]}
    for index, text in arguments.items():
        message["content"][index]["input"] = _arguments(text)
    return message


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the grammar allows no other, save for what is nested without end
        raise ApiError(500, f"the model's call cannot be read: {clip(text)}", code="malformed_call") from None
