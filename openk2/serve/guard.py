"""What every request passes before its route: its Host, its key, its size and how long it takes to come.

Invariants: a body is read whole before a route sees it, and never more of it
than is allowed; keys are compared in constant time. Left out: TLS and limits
by client (a proxy's business).
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openk2.serve.errors import ApiError, shown
from openk2.serve.metrics import Metrics
from openk2.serve.settings import ServeSettings

OPEN_PATHS = ("/health",)  # for probes, which hold no key
_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:[0-9]+)?")


class Guard:
    """ASGI middleware that answers what it refuses."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, key: str) -> None:
        """`key` "" asks for none."""
        self._app, self._settings, self._key = app, settings, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            if scope["path"] not in OPEN_PATHS:
                self._check_key(headers)
            body = await self._body(headers, receive)
            if body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                # Also keeps out forms, which pages of other sites may send without asking.
                raise ApiError(415, "content-type: saw another, expected application/json")
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replaying(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        hosts = self._settings.hosts
        match = _HOST.fullmatch(headers.get("host", ""))
        if hosts is not None and (match is None or match["name"].strip("[]").lower() not in hosts):
            raise ApiError(
                403, f"Host: saw {shown(headers.get('host'))}, expected this server's name; see --allow-host"
            )

    def _check_key(self, headers: Headers) -> None:
        if not self._key:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("latin-1"), self._key):
            raise ApiError(
                401,
                "API key: saw none, or another; expected this server's as Authorization: Bearer or x-api-key",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """All of it; None where the client went."""
        most = self._settings.max_body_bytes
        declared = headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > most):
            raise _too_large(most)
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.receive_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(
                408,
                f"body: saw {len(body)} bytes within {self._settings.receive_timeout:g} seconds, expected all of it",
                headers={"connection": "close"},
            ) from None


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"body: saw more than {most} bytes, expected at most so many; send less", headers={"connection": "close"}
    )


def _replaying(body: bytes, receive: Receive) -> Receive:
    """The whole body at once, then what else comes (the client's going)."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay


class Counted:
    """ASGI middleware that counts answers by route and status; routes that do not exist count as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, files: Collection[str]) -> None:
        self._app, self._metrics, self._files = app, metrics, files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = scope["path"]
            found = getattr(scope.get("route"), "path", path if path in self._files else "other")
            self._metrics.requests.labels(found, str(status)).inc()
