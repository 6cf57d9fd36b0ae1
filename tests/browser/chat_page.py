"""The chat page as its tests drive it: what it says and asks for is kept, and what must always hold is checked."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from running_server import CODEC, Running
from scripted_engine import ScriptedEngine, spelt

from openk2.protocols import Message

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script> & \u202eback\x07"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": HOSTILE,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOLS = ("calculator", "weekday", "set_note", "get_note")


class Opened:
    """The page in a browser context of its own, with all that it said and asked for."""

    def __init__(self, browser: Any, server: Running, engine: ScriptedEngine, **options: Any) -> None:
        self.server, self.engine = server, engine
        self.messages: list[str] = []
        self.requests: list[Any] = []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request))

    def load(self) -> Opened:
        self.page.goto(self.server.url)
        self.page.wait_for_selector("#offered > :not(p)", state="attached")
        return self

    def send(self, text: str = "hi") -> None:
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def ask(self, text: str, *replies: Message | str, first_call_index: int = 0) -> None:
        """Send `text`, to which the model says `replies`, and wait for the end."""
        self.reply(*replies, first_call_index=first_call_index)
        self.send(text)
        self.ended()

    def reply(self, *replies: Message | str, first_call_index: int = 0) -> None:
        self.engine.replies.extend(iter(spelt(CODEC, said, first_call_index=first_call_index)) for said in replies)

    def ended(self) -> None:
        self.page.wait_for_selector(".answer >> nth=-1 >> text=Retry")

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def bodies(self) -> list[dict[str, Any]]:
        """Of the requests for answers."""
        asked = [request for request in self.requests if request.url.endswith("/chat/completions")]
        return [json.loads(request.post_data) for request in asked]

    def load_anew(self) -> None:
        """As if it had never been opened."""
        self.page.evaluate("localStorage.clear(), sessionStorage.clear()")
        self.messages.clear()
        self.requests.clear()
        self.load()

    def check(self) -> None:
        """What holds after every test: nothing left the origin, nothing broke a rule or failed."""
        origin = self.server.url + "/"
        assert all(request.url.startswith(origin) for request in self.requests)
        # The browser itself notes answers that are no success.
        assert [text for text in self.messages if not text.startswith("Failed to load resource: the server")] == []
        assert self.page.title() == f"{self.server.service.settings.model_name} · chat"

    def close(self) -> None:
        self.check()
        self.context.close()


def paused(ids: Iterator[int], count: int, engine: ScriptedEngine) -> Iterator[int]:
    """The first `count` of `ids`; the rest once the engine is let go again."""
    for at, token in enumerate(ids, 1):
        if at == count:
            engine.going.clear()
        yield token


def endless(engine: ScriptedEngine) -> None:
    engine.pace = 0.002
    engine.replies.append(itertools.cycle(CODEC.tokenizer.encode("and so on ")))
