"""JSON and server-sent events as bytes.

Invariant: a stream closes what it reads from, however it ends: to its end, by
a client that has gone, by the server's stop.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

KEEP_ALIVE_SECONDS = 15.0
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))  # made once: a token has an event


def to_json(value: Any) -> bytes:
    """Compact JSON; a lone surrogate, which UTF-8 cannot hold, stays the escape that it came as."""
    return _JSON.encode(value).encode("utf-8", "backslashreplace")


def event(value: Any, name: str = "") -> bytes:
    """A server-sent event."""
    return (b"event: %s\n" % name.encode() if name else b"") + b"data: " + to_json(value) + b"\n\n"


class JsonResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


class EventStream(Response):
    """Server-sent events; `close` is called at the end, also where not one could be sent.

    `keep_alive` is sent where nothing else was for a while, so that proxies do not cut the connection. A client that
    reads so slowly that it takes longer than `limit` seconds gets no more.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], *, close: Callable[[], None], keep_alive: bytes, limit: float
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close, self._keep_alive, self._limit = events, close, keep_alive, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limit):
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await self._send_events(send)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()

    async def _send_events(self, send: Send) -> None:
        last = time.monotonic()

        async def keep_alive() -> None:
            nonlocal last
            while True:
                await asyncio.sleep(last + KEEP_ALIVE_SECONDS - time.monotonic())
                if time.monotonic() >= last + KEEP_ALIVE_SECONDS:
                    last = time.monotonic()
                    await send({"type": "http.response.body", "body": self._keep_alive, "more_body": True})

        beside = asyncio.create_task(keep_alive())
        try:
            async with aclosing(self._events) as events:
                async for chunk in events:
                    last = time.monotonic()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            beside.cancel()
