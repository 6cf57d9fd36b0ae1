"""A real HTTP server in a thread that answers as a script says: what providers do on good days and on bad ones."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Said:
    """A response: bytes are sent as chunks, numbers are seconds of silence; `cut` drops the connection at the end."""

    parts: Sequence[bytes | float] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    cut: bool = False


@dataclass
class Asked:
    """A request as it came in."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    port: int = 0  # of the client's connection

    @property
    def text(self) -> str:
        return self.body["messages"][-1]["content"]


Script = Callable[[Asked, int], Said]


@dataclass
class Serving:
    url: str
    asked: list[Asked]
    listed: list[Asked]  # requests of the list of models


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": index, "delta": fields, "finish_reason": finish}
    return event({"id": "c", "object": "chat.completion.chunk", "model": "scripted", "choices": [choice]})


def usage(prompt: int, completion: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


DONE = event(b"[DONE]")


def text(*pieces: str, tokens: tuple[int, int] | None = (10, 5), finish: str = "stop") -> Said:
    """A good answer."""
    parts = [delta(role="assistant", content=""), *(delta(content=piece) for piece in pieces), delta(finish=finish)]
    return Said([*parts, *([usage(*tokens)] if tokens else []), DONE])


def calls(*made: tuple[str, str]) -> Said:
    """Tool calls (name, arguments as JSON), the arguments split into single characters."""
    parts = [delta(role="assistant")]
    for index, (name, arguments) in enumerate(made):
        head = {"index": index, "id": f"call-{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        parts.append(delta(tool_calls=[head]))
        parts += [delta(tool_calls=[{"index": index, "function": {"arguments": piece}}]) for piece in arguments]
    return Said([*parts, delta(finish="tool_calls"), usage(20, 8), DONE])


def refusal(status: int, message: str, **headers: str) -> Said:
    body = json.dumps({"error": {"message": message, "code": None}}).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Said([body], status, {"content-type": "application/json", **names})


def echo(asked: Asked, attempt: int) -> Said:
    return text("you said ", asked.text)


@contextmanager
def serving(script: Script = echo) -> Iterator[Serving]:
    """`script(request, n)` gives the answer to the n-th request, from 0, with this request's body."""
    asked: list[Asked] = []
    listed: list[Asked] = []
    seen: dict[str, int] = {}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            listed.append(Asked(self.path, {}, dict(self.headers.items()), time.monotonic()))
            self._send(Said([json.dumps({"data": [{"id": "org/first"}, {"id": "second"}]}).encode()], headers={}))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers, port = dict(self.headers.items()), self.client_address[1]
            request = Asked(self.path, json.loads(body), headers, time.monotonic(), port)
            with lock:
                asked.append(request)
                attempt = seen.get(body.decode(), 0)
                seen[body.decode()] = attempt + 1
            self._send(script(request, attempt))

        def _send(self, said: Said) -> None:
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            try:
                for part in said.parts:
                    if isinstance(part, float):
                        time.sleep(part)
                        continue
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.flush()
                if said.cut:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")
            except OSError:  # the client has gone
                self.close_connection = True

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield Serving(f"http://127.0.0.1:{server.server_address[1]}/v1", asked, listed)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
