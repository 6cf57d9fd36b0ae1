"""Chat requests on bare sockets, and engines whose answers never end."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from typing import Any

from running_server import CODEC, Running
from scripted_engine import ScriptedEngine

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def endless() -> Iterator[int]:
    """The ids of a model that never stops."""
    return itertools.cycle(CODEC.tokenizer.encode("and so on "))


def engine_with(count: int) -> ScriptedEngine:
    return ScriptedEngine(CODEC, *(endless() for _ in range(count)), context=10**6)


def connected(server: Running) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def sent(server: Running, body: dict[str, Any]) -> socket.socket:
    """A connection on which a chat request has been sent."""
    text = json.dumps(body).encode()
    connection = connected(server)
    connection.sendall(
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % (CHAT.encode(), len(text))
        + text
    )
    return connection
