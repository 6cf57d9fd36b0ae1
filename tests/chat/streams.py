"""What a client puts together from a stream of deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openk2.chat import Codec, StreamParser


def merged(deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client puts together from the deltas."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for delta in deltas:
        message["content"] += delta.get("content", "")
        for part in delta.get("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if part["index"] == len(calls):
                calls.append({"id": part["id"], "type": part["type"], "function": {**part["function"]}})
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return message


def stream(codec: Codec, ids: Sequence[int], cuts: Sequence[int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Deltas and message of feeding `ids` cut at `cuts`."""
    parser = StreamParser(codec)
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    deltas = [delta for a, b in zip(edges, edges[1:], strict=False) for delta in parser.feed(ids[a:b])]
    return deltas + parser.close(), parser.finish()
