"""A real server on a free port, in a thread, for the time of a test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx
import openai
from small_checkpoint import small_codec

from openk2.serve.app import create_app
from openk2.serve.server import Server, address, listen
from openk2.serve.service import Service
from openk2.serve.settings import ServeSettings
from openk2.serve.worker import StepEngine

CODEC = small_codec()


@dataclass
class Running:
    url: str
    server: Server
    service: Service
    said: list[str] = field(default_factory=list)

    def openai(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)

    def anthropic(self, key: str = "none") -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key=key, max_retries=0, timeout=20)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=20, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=20, **options)


@contextmanager
def running(engine: StepEngine, *, api_key: str = "", **settings: Any) -> Iterator[Running]:
    chosen = ServeSettings(port=0, **{"grace": 5.0, **settings})
    said: list[str] = []
    app = create_app(engine, CODEC, chosen, api_key=api_key, say=said.append)
    with listen(chosen) as listener:
        server = Server(app, chosen)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        found = Running(address(listener), server, app.state.service, said)
        try:
            eventually(lambda: server.started)
            yield found
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive(), "the server did not stop"


def eventually(holds: Any, seconds: float = 10.0) -> None:
    """Wait until `holds()`; an AssertionError where it never does."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.005)
