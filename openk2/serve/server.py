"""The server's process: uvicorn around the application, from its start to its end by a signal.

On SIGTERM or SIGINT no connection is accepted any more, what runs may end
within the grace period, the rest is told that it was cut, and `serve` returns.
A second SIGINT ends at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from openk2.chat.codec import Codec
from openk2.serve.app import create_app
from openk2.serve.errors import ApiError
from openk2.serve.service import Service
from openk2.serve.settings import LOOPBACK, ServeSettings
from openk2.serve.worker import StepEngine

_CUT_SECONDS = 5.0  # for the last words of answers that are cut


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def serve(
    engine: StepEngine, codec: Codec, settings: ServeSettings, *, say: Callable[[str], None] = _to_stderr
) -> None:
    """Serve until a signal comes. `say` is told what the operator should know; by default on stderr.

    Raises `ValueError` for a key that is missing, a model and codec that do not fit, or an address that cannot be had.
    """
    key = _api_key(settings)
    app = create_app(engine, codec, settings, api_key=key, say=say)
    with listen(settings) as listener:
        if settings.host not in LOOPBACK and not key:
            say(f"warning: without --api-key-env, whoever reaches {settings.host} may use the model")
        say(f"{settings.model_name} on {address(listener)}/v1")
        Server(app, settings).run([listener])


@contextmanager
def listen(settings: ServeSettings) -> Iterator[socket.socket]:
    """The socket that the settings name."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        where = f"{settings.host}:{settings.port} cannot be listened on ({error.strerror})"
        raise ValueError(
            f"serve: saw that {where}, expected a free address of this machine; choose another with --port or --host"
        ) from None
    with listener:
        yield listener


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn, which tells cut requests so, and returns after a signal instead of raising it again."""

    def __init__(self, app: FastAPI, settings: ServeSettings) -> None:
        config = uvicorn.Config(
            app,
            http=_protocol(settings.receive_timeout),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=30,  # longer than clients keep theirs (5 s), which would meet it closing
            timeout_graceful_shutdown=int(settings.grace + _CUT_SECONDS) + 1,
        )
        super().__init__(config)
        self._service: Service = app.state.service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stopping = True
        cut = asyncio.get_running_loop().call_later(self._service.settings.grace, self._service.cut)
        await super().shutdown(sockets)
        cut.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        try:
            handlers = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, which alone hears signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which closes a connection whose headers take longer to arrive, and says what was no HTTP."""

    class Protocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._deadline = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            incomplete = self.conn.their_state is h11.IDLE
            if incomplete and self._deadline is None:  # the first part of a further request's headers
                self._deadline = self.loop.call_later(seconds, self.transport.close)
            elif not incomplete:
                self._forget_deadline()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_deadline()
            super().connection_lost(exc)

        def _forget_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def send_400_response(self, msg: str) -> None:
            error = ApiError(400, f"request: {msg} Expected HTTP/1.1", headers={"connection": "close"})
            response = error.response(path="")
            parts = (h11.Response(status_code=400, headers=response.raw_headers), h11.Data(data=bytes(response.body)))
            for part in (*parts, h11.EndOfMessage()):
                self.transport.write(self.conn.send(part))
            self.transport.close()

    return Protocol


def _api_key(settings: ServeSettings) -> str:
    if not settings.api_key_env:
        return ""
    key = os.environ.get(settings.api_key_env, "")
    if not key:
        raise ValueError(f"serve: saw no key in the environment variable {settings.api_key_env}, expected one; set it")
    return key
