"""Who may ask: by which name of the computer, with which key, from which pages."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import httpx
import pytest
from raw_requests import BODY, CHAT, engine_with
from running_server import CODEC, Running, running
from scripted_engine import ScriptedEngine

from openk2.serve.settings import ServeSettings


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LocalHost:1", 200), ("127.0.0.1:8000", 200), ("[::1]:80", 200), ("models.lan", 200),
        ("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1@evil.example", 403), ("", 403),
        ("localhost:80:80", 403),
    ],
)  # fmt: skip
def test_other_names_for_this_computer_are_refused(named: Running, host: str, status: int) -> None:
    for path in ("/health", "/v1/models"):
        assert named.get(path, headers={"host": host}).status_code == status


@pytest.fixture(scope="module")
def named() -> Iterator[Running]:
    with running(engine_with(0), allow_hosts=("Models.lan",)) as server:
        yield server


def test_every_name_may_be_used_where_others_can_reach_the_server() -> None:
    assert ServeSettings(host="0.0.0.0").hosts is None
    assert ServeSettings(host="0.0.0.0", allow_hosts=("a.lan",)).hosts == {"a.lan"}


def test_the_key_is_asked_for_everywhere_but_at_the_health_check() -> None:
    with running(ScriptedEngine(CODEC), api_key="sésame") as server:
        assert server.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            answer = server.get(path)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        right = "sésame".encode()
        for headers in ({"authorization": b"Bearer " + right}, {"x-api-key": right}):
            assert server.get("/v1/models", headers=headers).status_code == 200
        for headers in ({"authorization": b"Basic " + right}, {"x-api-key": b"sesame"}, {"authorization": b"Bearer"}):
            assert server.get("/v1/models", headers=headers).status_code == 401
    with running(ScriptedEngine(CODEC), api_key="k") as server:
        with server.openai("k") as client:
            assert client.completions.create(model="openk2", prompt="x", max_tokens=1).choices
        with server.anthropic("wrong") as other, pytest.raises(anthropic.AuthenticationError):
            other.messages.create(model="openk2", max_tokens=1, messages=BODY["messages"])


def test_other_origins_are_let_in_only_by_name() -> None:
    asking = {"origin": "https://page.example", "access-control-request-method": "POST"}
    with running(engine_with(0)) as server:
        assert server.get("/health", headers=asking).headers.get("access-control-allow-origin") is None
        assert httpx.options(server.url + CHAT, headers=asking).status_code == 405
    with running(engine_with(0), allow_origins=("https://page.example",)) as server:
        allowed = httpx.options(server.url + CHAT, headers=asking)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        refused = httpx.options(server.url + CHAT, headers={**asking, "origin": "https://evil.example"})
        assert refused.headers.get("access-control-allow-origin") is None
