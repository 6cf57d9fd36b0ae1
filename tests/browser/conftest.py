"""The chat page, served by an engine that replays answers, and open in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chat_page import TOOLS, Opened
from running_server import CODEC, Running, running
from scripted_engine import ScriptedEngine


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine(CODEC, context=4096)


@pytest.fixture(scope="module")
def server(engine: ScriptedEngine) -> Iterator[Running]:
    with running(engine, tools=TOOLS, model_name="small") as found:
        yield found


@pytest.fixture(scope="module")
def shared(browser: Any, server: Running, engine: ScriptedEngine) -> Iterator[Opened]:
    found = Opened(browser, server, engine).load()
    yield found
    found.context.close()


@pytest.fixture()
def opened(shared: Opened, engine: ScriptedEngine) -> Iterator[Opened]:
    engine.replies.clear()
    engine.requests.clear()
    engine.going.set()
    engine.pace = 0.0
    shared.load_anew()
    yield shared
    shared.check()
